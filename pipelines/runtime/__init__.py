"""What jobs need of Ray and of their machine."""
