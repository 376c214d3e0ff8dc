"""Small pictures of one shape each, with exact masks and boxes: the generator behind the default data set.

Only the outline of the object depends on the label. Its place, size, turn, colors and texture, and all
that lies behind it, come from the seed alone: the same seed with another label is the same scene with
another object in it, so nothing but the shape can tell the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ..errors import DataError
from ..preprocessing import Preprocessing

__all__ = ["CLASS_NAMES", "SHAPES", "Group", "Scene", "render_group", "render_scene"]

CLASS_NAMES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "crescent")
SHAPES = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
"""How the shapes become an input, and what a network trained on them expects."""

_MIN_SIZE = 32  # pixels; smaller pictures cannot show the shapes
_OVERSAMPLING = 4  # outlines are drawn this much larger, then averaged: smooth edges
_AREA_ROOT = (0.23, 0.36)  # square root of the object's area, of the picture's side: the same for all classes
_SIDE = (0.25, 0.55)  # limits of the longer side of the object's box, of the picture's side
_MARGIN = 0.02  # kept free around the picture, of its side, so that every outline is seen whole
_CONTRAST = 0.26  # OKLab distance of object and background (black to white is 1)
_CLUTTER_CONTRAST = 0.16  # OKLab distance of object and clutter

_Floats = NDArray[np.float32]  # pictures
_Colors = NDArray[np.float64]  # (N, 3) OKLab
_Points = NDArray[np.complex128]  # (N,) places in the plane, x + iy: to multiply is to turn
_Pen = ImageDraw.ImageDraw


class Scene(NamedTuple):
    """A picture of one object and where the object is.

    Attributes:
        image: The picture, (S, S, 3) uint8 RGB.
        mask: The object's pixels, (S, S) bool; nothing hides any of them.
        box: x0, y0, x1, y1 tight around the mask, in pixels; x1 and y1 are exclusive.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]


class Group(NamedTuple):
    """A picture of several objects of one class, apart from each other.

    Attributes:
        image: The picture, (S, S, 3) uint8 RGB.
        masks: The pixels of each object, (S, S) bool.
        boxes: x0, y0, x1, y1 tight around each mask, in pixels; x1 and y1 are exclusive.
    """

    image: NDArray[np.uint8]
    masks: list[NDArray[np.bool_]]
    boxes: list[tuple[int, int, int, int]]


def render_scene(label: int, seed: Sequence[int] | int, size: int = 96) -> Scene:
    """A picture of an object of class `label`: the same arguments give the same bits.

    Args:
        label: Index into `CLASS_NAMES`.
        seed: Non-negative whole number(s) that decide everything but the class.
        size: Side S of the picture in pixels, at least 32.

    Raises:
        DataError: `label` is no class or `size` is too small.
    """
    _check(label, size)
    rng = np.random.default_rng(seed)
    canvas, figure = _backdrop(rng, size)
    alpha = _silhouette(rng, label, size)
    _put(canvas, alpha, _texture(rng, size, figure))
    mask = np.asarray(alpha) > 127
    return Scene(_lit(rng, canvas), mask, _tight_box(mask))


def render_group(label: int, count: int, seed: Sequence[int] | int, size: int = 96, *, shrink: float = 1.0) -> Group:
    """A picture of `count` objects of class `label`, alike in color: the same arguments give the same bits.

    Args:
        label: Index into `CLASS_NAMES`.
        count: Number of objects.
        seed: Non-negative whole number(s) that decide everything else.
        size: Side S of the picture in pixels, at least 32.
        shrink: Factor on the objects' size, 1 as in `render_scene`.

    Raises:
        DataError: `label` is no class, `size` is too small, or so many objects find no room.
    """
    _check(label, size)
    rng = np.random.default_rng(seed)
    canvas, figure = _backdrop(rng, size)
    masks: list[NDArray[np.bool_]] = []
    for _ in range(100 * count):
        if len(masks) == count:
            return Group(_lit(rng, canvas), masks, [_tight_box(mask) for mask in masks])
        alpha = _silhouette(rng, label, size, shrink)
        mask = np.asarray(alpha) > 127
        if not any(_meet(_tight_box(mask), _tight_box(other)) for other in masks):
            masks.append(mask)
            _put(canvas, alpha, _texture(rng, size, figure))
    raise DataError(f"{count} objects find no room in {size} x {size} pixels; give fewer, or a smaller shrink")


def _check(label: int, size: int) -> None:
    if label not in range(len(CLASS_NAMES)):
        raise DataError(f"label {label!r} is no class; give a whole number from 0 to {len(CLASS_NAMES) - 1}")
    if size < _MIN_SIZE:
        raise DataError(f"size {size!r} is too small for the shapes; give at least {_MIN_SIZE} pixels")


def _meet(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two boxes overlap, or nearly so."""
    return all(box[i] - 2 < other[i + 2] and other[i] - 2 < box[i + 2] for i in (0, 1))


def _tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# --- the object -------------------------------------------------------------------------------------------


def _unit(turns: NDArray[np.float64] | float) -> _Points:
    """The directions at these numbers of turns, as points on the unit circle."""
    return np.asarray(np.exp(2j * np.pi * np.asarray(turns)))


def _polar(radii: NDArray[np.float64]) -> _Points:
    return radii * _unit(np.arange(len(radii)) / len(radii))


def _cross(vary: float) -> _Points:
    arm = 0.30 + 0.10 * vary  # half the width of the arms, of their length from the center
    corner = np.array([1 - arm * 1j, 1 + arm * 1j, arm + arm * 1j])
    return np.concatenate([corner * 1j**quarter for quarter in range(4)])


def _crescent(vary: float) -> _Points:
    bite, shift = 0.80, 0.50 + 0.12 * vary  # radius and center of the disc taken out of the unit disc
    tip = (1 + shift**2 - bite**2) / (2 * shift)  # where the two circles meet
    outer, inner = np.arccos(tip) / (2 * np.pi), np.arccos((tip - shift) / bite) / (2 * np.pi)
    rim, bay = np.linspace(outer, 1 - outer, 48), np.linspace(1 - inner, inner, 32)
    return np.concatenate([_unit(rim), shift + bite * _unit(bay)])


# In the order of CLASS_NAMES; each takes a number in [0, 1] that varies the shape within its class.
_OUTLINES: tuple[Callable[[float], _Points], ...] = (
    lambda _: _polar(np.ones(72)),
    lambda _: _polar(np.ones(4)),
    lambda _: _polar(np.ones(3)),
    lambda vary: _polar(np.tile([1.0, 0.42 + 0.08 * vary], 5)),
    _cross,
    _crescent,
)


def _silhouette(rng: np.random.Generator, label: int, size: int, shrink: float = 1.0) -> Image.Image:
    """The object's coverage of each pixel, 0..255: turned, slightly squeezed, anywhere in the picture."""
    vary, turn, squeeze, tilt, extent, *place = rng.random(7)
    points = _OUTLINES[label](vary) * _unit(turn)
    points = (points.real + (0.84 + 0.16 * squeeze) * 1j * points.imag) * _unit(tilt)
    area = abs((points.conj() * np.roll(points, 1)).imag.sum()) / 2
    sides = np.array([np.ptp(points.real), np.ptp(points.imag)])
    scale = (_AREA_ROOT[0] + extent * (_AREA_ROOT[1] - _AREA_ROOT[0])) / np.sqrt(area)
    scale = np.clip(scale, _SIDE[0] / sides.max(), _SIDE[1] / sides.max()) * shrink
    x, y = _MARGIN + np.array(place) * (1 - 2 * _MARGIN - scale * sides)
    points = (points - points.real.min() - 1j * points.imag.min()) * scale + complex(x, y)
    return _draw(size, lambda pen, side: _fill(pen, points * side))


def _put(canvas: _Floats, alpha: Image.Image, paint: _Floats) -> None:
    _cast_shadow(canvas, alpha)
    _paint(canvas, paint, alpha)


def _cast_shadow(canvas: _Floats, alpha: Image.Image) -> None:
    """Darken the surroundings of the object a little, to lift it off the clutter."""
    blurred = alpha.filter(ImageFilter.BoxBlur(alpha.width / 48))
    canvas *= 1 - np.asarray(blurred, np.float32) * (0.4 / 255)


# --- what lies behind it ----------------------------------------------------------------------------------


def _backdrop(rng: np.random.Generator, size: int) -> tuple[_Floats, _Floats]:
    """Background and clutter, (3, S, S), and the colors of the object that is to come."""
    ground, figure, *litter = _palette(rng)
    canvas = _texture(rng, size, ground)
    for colors in litter:
        _paint(canvas, _texture(rng, size, colors), _clutter(rng, size))
    return canvas, figure


def _clutter(rng: np.random.Generator, size: int) -> Image.Image:
    """The coverage of each pixel, 0..255, by things of no class: thin strokes, specks and small blobs."""

    def scatter(pen: _Pen, side: int) -> None:
        for kind in rng.integers(len(_LITTER), size=rng.integers(3, 7)):
            _LITTER[kind](rng, pen, side)

    return _draw(size, scatter)


def _stroke(rng: np.random.Generator, pen: _Pen, side: int) -> None:
    """A line, a bar, an arc or a squiggle: open, and thin beside the objects."""
    x, y, heading, bend, length, width, wiggle, waves = rng.random(8)
    along = np.linspace(0, 1, 24)
    turns = heading + 0.7 * (bend - 0.5) * along  # an arc turns by at most 126 degrees
    steps = _unit(turns + max(0.0, 0.5 * wiggle - 0.25) * np.sin(2 * np.pi * (1 + 2 * waves) * along))
    middle = (np.cumsum(steps) - steps.sum() / 2) * ((0.15 + 0.5 * length) / len(steps)) + complex(x, y)
    across = 1j * steps * (0.005 + 0.012 * width**2)
    _fill(pen, np.concatenate([middle - across, (middle + across)[::-1]]) * side)


def _specks(rng: np.random.Generator, pen: _Pen, side: int) -> None:
    """A handful of dots, each far smaller than an object."""
    spots, radii = rng.random(2) + rng.normal(size=(5, 2)) * 0.06, rng.uniform(0.006, 0.018, (5, 1))
    for box in (np.hstack([spots - radii, spots + radii]) * side).tolist():
        pen.ellipse(box, fill=255)


def _blob(rng: np.random.Generator, pen: _Pen, side: int) -> None:
    """A small patch with an irregular outline."""
    (x, y, extent), phases = rng.random(3), rng.random((3, 1))
    bumps = _unit(phases + np.array([[1], [2], [3]]) * np.linspace(0, 1, 40, endpoint=False)).real.sum(axis=0)
    _fill(pen, (_polar((0.022 + 0.02 * extent) * (1 + 0.28 * bumps)) + complex(x, y)) * side)


_LITTER = (_stroke, _stroke, _stroke, _specks, _blob)


def _lit(rng: np.random.Generator, canvas: _Floats) -> NDArray[np.uint8]:
    """The finished picture (S, S, 3)."""
    canvas *= _light(rng, canvas.shape[-1])
    return np.ascontiguousarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _light(rng: np.random.Generator, size: int) -> _Floats:
    """A soft fall of light across the picture, (S, S) around 1."""
    across, down = rng.uniform(-0.12, 0.12, (2, 1)) * np.linspace(-1, 1, size)
    return np.asarray(1 + across + down[:, None], np.float32)


# --- paint ------------------------------------------------------------------------------------------------


def _draw(size: int, strokes: Callable[[_Pen, int], None]) -> Image.Image:
    """What `strokes` draws on a square of the side it is given, averaged down to (S, S), 0..255."""
    large = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING))
    strokes(ImageDraw.Draw(large), large.width)
    return large.reduce(_OVERSAMPLING)


def _fill(pen: _Pen, points: _Points) -> None:
    pen.polygon(points.view(np.float64).tolist(), fill=255)


def _paint(canvas: _Floats, paint: _Floats, alpha: Image.Image) -> None:
    canvas += (paint - canvas) * (np.asarray(alpha, np.float32) / 255)


def _texture(rng: np.random.Generator, size: int, colors: _Floats) -> _Floats:
    """A picture-sized paint, (3, S, S) in 0..255, of two colors (2, 3): plain, shaded or patterned."""
    turn, pitch, phase = rng.random(3)
    axis: _Floats = np.linspace(0, 1, size, endpoint=False, dtype=np.float32)
    x, y = axis * np.float32(np.cos(2 * np.pi * turn)), axis * np.float32(np.sin(2 * np.pi * turn))
    along, across = x + y[:, None], x[:, None] - y
    period = max(0.06 + 0.10 * pitch, 4 / size)  # at least four pixels: nothing finer can be seen
    sharp = np.float32(period * size / (2 * np.pi))  # makes the edges of a pattern one pixel wide

    def wave(coordinate: _Floats) -> _Floats:
        return np.asarray(np.sin(coordinate * np.float32(2 * np.pi / period) + np.float32(7 * phase)))

    fields: tuple[Callable[[], _Floats], ...] = (
        lambda: np.zeros_like(along),  # plain
        lambda: (along - along.min()) / np.ptp(along) * 2 - 1,  # gradient
        lambda: _clouds(rng, size, 4),
        lambda: _clouds(rng, size, 9) * sharp,  # blotches
        lambda: wave(along) * sharp,  # stripes
        lambda: wave(along) * wave(across) * sharp,  # checks
        lambda: (wave(along) + wave(across) - 1) * sharp,  # dots
    )
    weight = np.clip(0.5 + 0.5 * fields[rng.integers(len(fields))](), 0, 1)
    first, second = colors[:, :, None, None]
    return np.asarray(first + weight * (second - first))


def _clouds(rng: np.random.Generator, size: int, grains: int) -> _Floats:
    """Soft noise, (S, S) about -1..1, with `grains` grains along each side."""
    noise = Image.fromarray(rng.uniform(-1.2, 1.2, (grains, grains)).astype(np.float32))
    return np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))


def _palette(rng: np.random.Generator) -> list[_Floats]:
    """Pairs of RGB colors, (2, 3) in 0..255: of the background, the object and two layers of clutter.

    All are drawn alike; those of the object then differ visibly from all others.
    """
    lightness, chroma, hue = rng.random((3, 16))
    tint = (0.02 + 0.11 * chroma) * _unit(hue)
    pool = np.stack([0.35 + 0.57 * lightness, tint.real, tint.imag], axis=1)
    ground = pool[:1]
    figure = _apart(pool[1:8], ground, _CONTRAST, 1)
    litter = _apart(pool[8:], figure, _CLUTTER_CONTRAST, 2)
    first = np.concatenate([ground, figure, litter])
    shift = rng.normal(size=first.shape) * (0.09, 0.05, 0.05)
    # The second color of a pair lies on the far side of the first, so that the pairs stay apart.
    away = first - np.concatenate([figure, ground, figure, figure])
    second = first + shift * np.where((shift * away).sum(axis=1, keepdims=True) < 0, -1, 1)
    return list(_rgb(np.stack([first, second], axis=1)))


def _apart(pool: _Colors, color: _Colors, distance: float, count: int) -> _Colors:
    """The first `count` colors of the pool at that distance from `color`, or else the farthest."""
    gaps = np.minimum(np.linalg.norm(pool - color, axis=1), distance)
    return pool[np.argsort(-gaps, kind="stable")[:count]]


_LAB_TO_LMS = np.array([(1, 0.396338, 0.215804), (1, -0.105561, -0.063854), (1, -0.089484, -1.291486)])
_LMS_TO_RGB = np.array(
    [(4.076742, -3.307712, 0.230970), (-1.268438, 2.609757, -0.341319), (-0.004196, -0.703419, 1.707615)]
)


def _rgb(oklab: NDArray[np.float64]) -> _Floats:
    """OKLab colors (..., 3), whose distances are as seen, as RGB in 0..255."""
    linear = (oklab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    return np.asarray(255 * np.clip(linear, 0, 1) ** (1 / 2.2), np.float32)
