"""Preparation of float models for quantization: folding, equalization and bias correction."""
