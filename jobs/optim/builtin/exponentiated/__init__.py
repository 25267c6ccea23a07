"""Optimizers whose rates grow and fall with training, by exponentiated gradients."""
