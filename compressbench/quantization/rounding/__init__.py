"""Rounding of weights; one file for each such conf/quantizer/*.yaml."""
