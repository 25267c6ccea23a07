"""Optimizers whose rate is one of each layer, by the norms of its weights and of its step."""
