"""Rounding methods for weights; one file for each method in conf/quantizer/*.yaml."""
