"""The numbers of an answer."""
