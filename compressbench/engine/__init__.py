"""Runs a recipe: plan it, run each stage or take it from the store, export, measure, report."""
