"""Which layer and activation gets which grid, and putting it there."""
