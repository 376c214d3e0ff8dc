"""What a run does beside training: overlays, baselines, record, export, console. Each owns its state."""
