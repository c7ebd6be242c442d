"""What experiments need beside the method: other methods, gradients, importance and selection of dims."""
