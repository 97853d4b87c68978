"""Pruning stages; the algorithms that they use are in the subpackages."""
