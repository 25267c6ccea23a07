"""The built-in samplers: which rows of the data a global batch holds, a function of the step alone.

Each module holds a function of its name: (rows, size, seed, step, **options) -> int64 [size], numbers below `rows`.
"""
