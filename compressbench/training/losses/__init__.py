"""Distillation losses, one file per conf/loss/*.yaml."""
