"""What the layers of a model see, and what each of them bears."""
