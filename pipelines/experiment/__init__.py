"""The paper's experiments on any dataset: `smec experiment`."""
