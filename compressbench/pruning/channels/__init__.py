"""Channels that are really removed, with everything that depends on them."""
