"""The folder of a pretrained encoder: which of its files are loaded, and what they say of it."""
