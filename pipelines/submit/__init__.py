"""Runs a command of smec as a job of a Ray cluster: `smec submit`."""
