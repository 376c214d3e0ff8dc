"""What is drawn and written of one explained image: its picture, its raw maps, and its line of the results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..boxes import BoxRule
from ..console import fixed
from ..drawing.encoding import encoded
from ..drawing.grid import POSITIVE, Cell, Row, grid_figure
from ..drawing.overlay import ClassMap, Region, overlay_picture, plain_overlay
from ..files import write_whole
from ..image_files import read_image
from .explained_folder import file_stamp

__all__ = ["ImageMaps", "Style", "output_endings", "write_image"]


@dataclass(frozen=True)
class Style:
    """How pictures look.

    Attributes:
        colormap: name in ``matplotlib.colormaps``.
        kind: ``"png"`` or ``"jpg"``.
        long_side: of a picture in the drawing, pixels; None: heat and boxes alone, in the resolution of the file.
        bits: of gray files, see ``Preprocessing``.
    """

    colormap: str
    kind: str
    long_side: int | None
    bits: int | None


@dataclass(frozen=True)
class ImageMaps:
    """What a network says of one image, and its maps; on the CPU.

    Attributes:
        targets: the T classes that are explained.
        logits: (K,).
        probabilities: (K,).
        raw: signed maps (T, M, h, w) of M methods.
        regions: the pixels (T, M, H, W), bool, that belong to boxes.
        rules: of the M methods' boxes.
    """

    targets: list[int]
    logits: Tensor
    probabilities: Tensor
    raw: Tensor
    regions: NDArray[np.bool_]
    rules: list[BoxRule]


def output_endings(kind: str, pictures: int) -> tuple[str, ...]:
    """How the names of an image's files end: of its pictures, then of the raw maps."""
    return (*(_picture_ending(kind, number) for number in range(pictures)), ".npy")


def _picture_ending(kind: str, number: int) -> str:
    return f"_cam.{kind}" if number == 0 else f"_cam_{number + 1}.{kind}"


def write_image(
    methods: Sequence[str],
    titles: Sequence[str],
    style: Style,
    maps: ImageMaps,
    image: Tensor | None,
    path: Path,
    size: tuple[int, int],
    stem: Path,
) -> dict[str, Any]:
    """Draw and write the files of an image, which begin with the stem; its line of the results.

    Args:
        methods: names of the M methods.
        titles: of all classes.
        style: how the picture looks.
        maps: what the network said.
        image: (3, h, w) uint8, for the drawing; None reads the file, for its own resolution.
        path: of the image.
        size: (height, width) of the file, pixels.
        stem: folder and beginning of the names of what is written.
    """
    classes = [
        {
            "class": titles[k],
            "index": k,
            "logit": float(maps.logits[k]),
            "probability": float(maps.probabilities[k]),
            "maps": {
                method: _figures(method_maps, region, rule, size)
                for method, method_maps, region, rule in zip(
                    methods, maps.raw[place], maps.regions[place], maps.rules, strict=True
                )
            },
        }
        for place, k in enumerate(maps.targets)
    ]
    if image is None:
        pictures = _write_overlays(read_image(path, style.bits).as_subclass(Tensor), classes, maps, style, stem)
    else:
        drawn = _picture(image, methods, classes, maps, style, path.name)
        pictures = [f"{stem.name}{_picture_ending(style.kind, 0)}"]
        write_whole(stem.with_name(pictures[0]), encoded(drawn, style.kind))
    files = {"picture": pictures[0], "raw_maps": f"{stem.name}.npy"}
    content = io.BytesIO()
    np.save(content, maps.raw.numpy())
    write_whole(stem.with_name(files["raw_maps"]), content.getvalue())
    return {
        "image": str(path),
        "file": file_stamp(path),
        "name": stem.name,
        "size": list(size),
        **files,
        "classes": classes,
    }


def _write_overlays(
    image: Tensor, classes: Sequence[Mapping[str, Any]], maps: ImageMaps, style: Style, stem: Path
) -> list[str]:
    """Every map over the picture in its own resolution; the names, which its class's figures get too."""
    names = list[str]()
    for entry, maps_Mhw in zip(classes, maps.raw, strict=True):
        for figures, map_hw in zip(entry["maps"].values(), maps_Mhw, strict=True):
            boxes = figures.get("boxes") or ([figures["box"]] if figures["box"] else [])
            drawn = plain_overlay(
                image, map_hw, scale=float(map_hw.max()), boxes=np.array(boxes).reshape(-1, 4), colormap=style.colormap
            )
            figures["picture"] = f"{stem.name}{_picture_ending(style.kind, len(names))}"
            names.append(figures["picture"])
            write_whole(stem.with_name(names[-1]), encoded(drawn, style.kind))
    return names


def _figures(map_hw: Tensor, region_HW: NDArray[np.bool_], rule: BoxRule, file_size: tuple[int, int]) -> dict[str, Any]:
    """Range of a raw map, and the boxes that the rule gives, in pixels of the file (xyxy, exclusive)."""
    factors = np.array([file_size[1] / region_HW.shape[1], file_size[0] / region_HW.shape[0]] * 2)
    boxes = [[round(float(value), 1) for value in box * factors] for box in rule.mask_boxes(region_HW)]
    return {
        "low": float(map_hw.min()),
        "high": float(map_hw.max()),
        "constant": not region_HW.any(),
        "box": boxes[0] if boxes else None,
        **({"boxes": boxes} if rule.regions == "all" else {}),
    }


def _picture(
    image: Tensor,
    methods: Sequence[str],
    classes: Sequence[Mapping[str, Any]],
    maps: ImageMaps,
    style: Style,
    title: str,
) -> Image.Image:
    """One map in detail, with its region; of several classes or methods a grid."""
    side = style.long_side or max(image.shape[-2:])
    if len(methods) == len(classes) == 1:
        entry, map_hw = classes[0], maps.raw[0, 0]
        class_map = ClassMap(entry["class"], map_hw, entry["logit"], entry["probability"])
        region = Region(maps.regions[0, 0], maps.rules[0])
        return overlay_picture(
            image, None, class_map, scale=float(map_hw.max()), region=region, colormap=style.colormap, title=title,
            long_side=side,
        )  # fmt: skip
    rows = []
    for entry, maps_Mhw in zip(classes, maps.raw, strict=True):
        captions = (entry["class"], f"logit {fixed(entry['logit'], 2)} · p {entry['probability']:.2f}")
        rows.append(Row(image, None, captions, [Cell.of_map(one) for one in maps_Mhw]))
    heads = [("", method) for method in methods]
    return grid_figure(title, heads, rows, rule=POSITIVE, side=side, colormap=style.colormap)
