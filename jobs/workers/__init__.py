"""A job on many processes: the ranks of a slot, what they are doing, and what their nodes have."""
