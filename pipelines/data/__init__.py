"""Data of a job: the one pass over a dataset, what a training takes of it, its check, and the sample dataset."""
