"""Exports an artifact to one ONNX file and writes the files that ship with it."""
