"""The stages that fit a model, alone or taught by another."""
