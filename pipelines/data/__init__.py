"""Data of a job: streams of vectors into workers, the check of a dataset, and the sample."""
