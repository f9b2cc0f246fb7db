"""What an evaluation is, apart from who runs it: pure functions and plain data. See docs/evaluation.md."""
