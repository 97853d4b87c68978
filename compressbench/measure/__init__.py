"""Measures an ONNX file: quality, size, latency, compute, and agreement with the PyTorch model."""
