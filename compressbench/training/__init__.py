"""Stages that train a model, with or without a teacher."""
