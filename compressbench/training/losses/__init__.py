"""Distillation losses; one file for each conf/loss/*.yaml."""
