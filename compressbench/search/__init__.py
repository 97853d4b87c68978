"""Sweeps: a search over recipes, its workers, and what is stored of it. The only optuna import."""
