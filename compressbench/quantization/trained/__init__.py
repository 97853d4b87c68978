"""Grids that are trained; one file for each conf/trained_quantizer/*.yaml."""
