"""What must be survived or refused; the numbers in names are rows of one list of faults."""
