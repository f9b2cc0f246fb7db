"""`rlframe convert`: checkpoints rewritten tensor by tensor, in memory that does not grow with the model."""
