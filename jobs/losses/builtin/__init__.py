"""The built-in losses: one module each, which holds a loss of the module's name. The folder is the table, with those
below it, which are families.
"""
