"""Grids of layers and activations: selection, calibration and application."""
