"""A folder for any web server in which a network runs in the browser: page, ONNX file, and what runs it.

``folder.py`` writes it; ``runtime.py`` knows the files of onnxruntime-web; the ``.js`` files are the page's own code.
"""

from .folder import WebFolder, export_web

__all__ = ["WebFolder", "export_web"]
