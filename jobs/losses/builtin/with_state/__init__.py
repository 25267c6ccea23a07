"""Losses that are modules: with parameters of their own, or a state that each step adds to."""
