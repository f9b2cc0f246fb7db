"""On-policy distillation: who teaches a trajectory, what the teachers said, what it is worth, what came of it."""
