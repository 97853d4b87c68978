"""Samplers: each proposes the settings of the next trial from what the earlier ones gave."""
