"""A picture in the terminal, where that can draw one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from ..console import terminal
from ..image_files import open_image, upright_rgb

__all__ = ["show_pictures"]


def show_pictures(paths: list[Path]) -> int:
    """Draw picture files on stdout by Sixel or the protocol of Kitty; how many were drawn.

    The terminal is asked what it can do, once. Nothing is drawn where nobody looks at it (a file, a pipe), where it can
    draw letters only, or where drawing fails: the files are there all the same.
    """
    if not paths or not all(stream is not None and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__)):
        return 0
    shown = 0
    try:
        from textual_image import renderable  # asks the terminal when it is imported

        kind: Any = renderable.Image
        if kind not in (renderable.SixelImage, renderable.TGPImage):
            return 0
        for path in paths:
            with open_image(path) as opened:
                content = io.BytesIO()
                upright_rgb(opened).save(content, "PNG")
            terminal().print(kind(content))
            shown += 1
    except Exception:  # noqa: BLE001 - terminals answer all kinds of things
        return shown
    return shown
