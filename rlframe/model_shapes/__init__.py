"""What a Hugging Face config says about a model: sizes and schedules, read and checked without torch."""
