"""Optimizers that move every number of a parameter by the same amount: the sign of a momentum. A gradient that is 0 but
for rounding has a sign all the same, that of a key's bias in attention for one: such a weight, on which no embedding
depends, ends elsewhere on another number of ranks.
"""
