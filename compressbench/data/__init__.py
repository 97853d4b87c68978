"""Datasets and their batches; one file per conf/dataset/*.yaml."""
