"""What a training will cost."""
