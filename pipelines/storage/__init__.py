"""What jobs keep: run folders, leases, published folders, model folders."""
