"""Hydra's door to compressbench.search."""
