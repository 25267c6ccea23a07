"""Metrics of pairs that say the same (a score of 1) or do not (0), by their cosine.

A threshold is chosen on other rows than those it is scored on: on the one half of the rows for the other, both ways.
"""
