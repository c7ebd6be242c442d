"""Reads every byte of what is stored: `smec verify`."""
