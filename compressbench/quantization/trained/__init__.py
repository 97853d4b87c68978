"""Quantizers for training; one file for each conf/trained_quantizer/*.yaml."""
