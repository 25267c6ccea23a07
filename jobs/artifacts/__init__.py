"""The files of a trial: where they lie, checkpoints, and what belongs to whom. No torch but in checkpoint.py."""
