"""From an ONNX file to its figures."""
