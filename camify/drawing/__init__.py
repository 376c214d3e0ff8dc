"""Pictures: overlays of maps, grids of methods, strips over epochs. Pure functions; pages are in ``reports``."""
