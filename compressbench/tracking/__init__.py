"""MLflow: what is logged, and the process that logs it."""
