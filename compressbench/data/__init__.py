"""Datasets and their batches; one file for each conf/dataset/*.yaml."""
