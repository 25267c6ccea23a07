"""The built-in optimizers: one module each, which holds an optimizer of the module's name. The folder is the table,
with those below it, which are families.
"""
