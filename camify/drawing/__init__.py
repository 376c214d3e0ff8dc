"""Pictures: overlays of maps, grids of methods, strips over epochs. Pure functions of tensors.

Pages and tables are in ``reports``. Which images a run draws is decided in ``training/callbacks``.
A new kind of picture is a function in ``overlay.py`` or ``grid.py``; what several kinds need goes to ``primitives.py``.
"""
