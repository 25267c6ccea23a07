"""The built-in schedules: the share of the peak learning rate that is left, as a function of what has passed.

Each module holds a function of its name: passed, the share from 0 to 1 of what follows the warm-up, -> what is left.
"""
