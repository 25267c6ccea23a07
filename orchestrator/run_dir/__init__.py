"""A run's folder, here or in a bucket: how it is begun, what lies in it, and what its numbers come from."""
