"""Ranges of activations and weights; one file for each such conf/quantizer/*.yaml."""
