"""Pictures: overlays of maps, grids of methods, strips over epochs. Pure functions of tensors.

Pages and tables are in ``reports``; which images a run draws is decided in ``training/callbacks``.
"""
