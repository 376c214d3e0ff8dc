"""What a run does beside training: overlays, baselines, the record, export, the console. Each owns its state.

What training itself does by the epoch is in ``stages.py``. A new logger of images is a row in ``image_loggers.py``.
"""
