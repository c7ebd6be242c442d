"""Searches settings of the method on Ray Tune: `smec tune`."""
