"""Architectures and checkpoints; one file per conf/model/*.yaml."""
