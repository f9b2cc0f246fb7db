"""Teachers of on-policy distillation: who they are, and whether they fit the student."""
