"""Structured pruning: coupling, ranking and removal of channels."""
