"""Metrics of how embeddings spread over the sphere. None of them has a number for a row."""
