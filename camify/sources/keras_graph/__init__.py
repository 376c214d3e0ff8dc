"""Keras files: read as data, and put together of layers of torch."""
