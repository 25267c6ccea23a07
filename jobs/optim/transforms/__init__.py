"""The built-in gradient transforms: what is done to a gradient between the sum over ranks and the optimizer."""
