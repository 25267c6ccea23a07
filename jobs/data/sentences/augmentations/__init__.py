"""The built-in augmentations of sentences: random views of rows of tokens, functions of (seed, step, pair, view) alone.

Each module holds a function of its name, which takes what it asks for of tokens int64 [c, L]; mask int64 [c, L], 1
where a token stands; words int64 [c, L], the number of each token's word in its row, from 0, and -1 for what no view
may change: special tokens, a prompt and padding; mask_token; seed, step, pairs int64 [c], view (0 or 1) and its
options. It gives tokens, or tokens and mask, of any common length. A row's view must depend on no other row, nor on its
padding.
"""
