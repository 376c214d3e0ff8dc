"""A page in the browser: a picture, what a network says of it, and the maps of its classes.

What is shown is computed in ``answers.py``, put into words in ``fragments.py`` and laid out in ``page.py``, the only
file that knows Gradio. The command is in ``cli/app.py``; a Hugging Face Space of it is written by ``space.py``.
"""
