"""Losses without negatives, of covariances over the whole batch."""
