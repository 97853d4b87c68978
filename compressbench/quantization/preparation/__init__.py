"""What is done to a float model before its weights are rounded."""
