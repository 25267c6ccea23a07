"""The built-in losses: one module each, which holds a loss of the module's name. The folder is the table."""
