"""Graph to graph: each file is one pass over the exported graph, in the order of `export.onnx`."""
