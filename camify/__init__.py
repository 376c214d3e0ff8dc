"""camify turns image classifiers into CAM-ready ones."""
