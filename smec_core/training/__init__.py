"""The training: its stages, losses, memory, guard and checkpoints."""
