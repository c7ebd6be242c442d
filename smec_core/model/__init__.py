"""Models: stages, how they fold into one matrix, and the files that hold them."""
