"""Single weights: which ones go, and how many of each layer."""
