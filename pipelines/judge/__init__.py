"""Makes judgements of a click log: `smec judge`."""
