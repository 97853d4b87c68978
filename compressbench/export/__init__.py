"""From an artifact to one ONNX file, and what ships beside it."""
