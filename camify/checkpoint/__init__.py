"""The checkpoint: its folder, the architecture as data, certificate, model card, the Hub. No code is stored."""
