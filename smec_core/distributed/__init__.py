"""The process group of a training, and the rows that its ranks read."""
