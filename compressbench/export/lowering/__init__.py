"""Passes over the exported graph, one per file; `export.onnx` runs them in order."""
