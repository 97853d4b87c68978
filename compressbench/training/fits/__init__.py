"""A fit: gradient descent, its schedule, its checkpoints."""
