"""Scores a model, or whole searches with it in a vector store: `smec evaluate`."""
