"""Measurements on the layers of a model: their inputs, and how sensitive they are to changes."""
