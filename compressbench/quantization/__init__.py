"""The quantization stages; subfolders hold how they work."""
