"""Observers of value ranges; one file for each observer in conf/quantizer/*.yaml."""
