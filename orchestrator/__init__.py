"""Comparisons of training jobs: from a sweep file to a verdict."""

__version__ = "0.1.0"
