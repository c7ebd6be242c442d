"""Datasets: where tables lie, what they must hold, and how they are read."""
