"""Architectures and checkpoints; one file for each conf/model/*.yaml."""
