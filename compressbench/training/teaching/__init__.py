"""Training of a student against one or more teachers."""
