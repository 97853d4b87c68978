"""Training by gradient descent: the fit, its schedule and its checkpoints."""
