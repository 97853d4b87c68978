"""The pruning stages; subfolders hold how they work."""
