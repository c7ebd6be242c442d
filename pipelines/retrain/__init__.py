"""Cycles of retraining on a schedule, and the way back: `smec retrain` and `smec rollback`."""
