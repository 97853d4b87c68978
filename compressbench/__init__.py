"""Recipes of pruning, quantization and distillation, measured on the exported file."""

__version__ = "0.1.0"
