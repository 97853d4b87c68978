"""Logs runs and sweeps to MLflow, from a separate process."""
