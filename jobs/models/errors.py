"""What can be wrong with the model of a job."""

from __future__ import annotations


class ModelError(ValueError):
    """The model a job asks for cannot be made. Says what was found, what is needed and what works."""
