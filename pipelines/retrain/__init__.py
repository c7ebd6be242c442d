"""Retraining on a schedule: `smec retrain`, the way back (`smec rollback`), `smec status` and `smec clean`."""
