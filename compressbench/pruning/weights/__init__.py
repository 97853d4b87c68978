"""Unstructured pruning: selection of weights and distribution over layers."""
