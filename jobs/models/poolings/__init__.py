"""The built-in poolings: how the states of a row's tokens become one vector, as sentence-transformers does it.

Each module holds a function of its name; one of the user's own is a function likewise, or a class of nn.Module, which
is built with `width` if it asks for it, and whose parameters are trained. It takes by name what it asks for of states
[n, L, width], in fp32 or fp64; mask [n, L], 1 for what counts; first and before_last, the states of the first layer and
of the one before the last; and gives [n, width].
"""
