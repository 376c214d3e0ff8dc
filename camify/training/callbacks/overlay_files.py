"""The pictures of a run's watched images, and of those worth a look: drawn and written, with what the page needs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ...boxes import DEFAULT_RULE, BoxRule
from ...checkpoint.folder import file_sha256
from ...drawing.encoding import encoded
from ...drawing.overlay import ClassMap, Region, boxes_in_overlay, overlay_picture, sheet_picture, strip_picture
from ...files import slug, to_json, write_whole
from ...normalizers import Normalizer
from ...reports.run_folder import INDEX
from .highlights import HIGHLIGHT_KINDS, DrawnHighlight
from .image_loggers import Offer
from .watched_images import Observation, WatchedImages

__all__ = ["OverlayFiles", "highlight_entry", "method_folders"]

_DURATION = 700  # of one epoch in an animation, ms


class _Drawn(NamedTuple):
    """A picture, and by what they show the boxes in it, in its pixels."""

    picture: Image.Image
    boxes: dict[str, list[list[float]]]


@dataclass(frozen=True)
class OverlayFiles:
    """What the pictures are drawn from. Nothing in it changes any more, so another thread may draw.

    Attributes:
        folder: ``overlays/`` of the run.
        watched: the watched images.
        class_names: all of them.
        methods: names of the explanation methods; the first one's pictures lie where those of a single one do.
        observations: what the network said of the watched images, by epoch.
        colormap: name in ``matplotlib.colormaps``.
        normalizer: of the box rule.
    """

    folder: Path
    watched: WatchedImages
    class_names: Sequence[str]
    methods: Sequence[str]
    observations: Mapping[int, Observation]
    colormap: str
    normalizer: Normalizer

    # ------------------------------------------------------------ what is written

    def write_epoch(self, epoch: int, highlights: Sequence[DrawnHighlight]) -> list[Offer]:
        """Pictures of an epoch, and strips of all so far; gives those that are for loggers.

        Long strips are drawn anew when they have grown by a tenth, so that an epoch's cost does not grow with them.
        """
        offers = []
        for method, under in self._drawn():
            for index, name in enumerate(self.watched.names):
                if method in self.observations[epoch]["maps"]:
                    drawn, png = self._write_frame(epoch, index, method, under)
                    offers.append(Offer(f"overlays/{under}{name}", png, drawn.boxes))
                strip, length = f"strips/{under}{name}.png", len(self._epochs(method))
                if length % max(1, length // 10) == 0 or not (self.folder / strip).is_file():
                    self._write(self._strip(index, method), strip)
        for highlight in highlights:
            file = _highlight_file(epoch, highlight)
            drawn = self._highlight(epoch, highlight)
            offers.append(Offer(f"{highlight.kind}/{highlight.place}", self._write(drawn.picture, file), drawn.boxes))
            if highlight.is_wrong:
                self._write(self._highlight(epoch, highlight, of_predicted=True).picture, _predicted(file))
        return offers

    def write_all(self) -> None:
        """All epochs once more, on the scale that is final, as animations, and all strips on a sheet."""
        for method, under in self._drawn():
            for index, name in enumerate(self.watched.names):
                frames = [self._write_frame(epoch, index, method, under)[0] for epoch in self._epochs(method)]
                first, *rest = (frame.picture for frame in frames)
                film = io.BytesIO()
                first.save(film, "WEBP", save_all=True, append_images=rest, duration=_DURATION, loop=0, quality=80)
                write_whole(self.folder / f"animations/{under}{name}.webp", film.getvalue())
            strips = [self._strip(index, method) for index in range(len(self.watched.names))]
            for name, strip in zip(self.watched.names, strips, strict=True):
                self._write(strip, f"strips/{under}{name}.png")
            self._write(sheet_picture(strips, 1), f"{under}sheet.png")

    def write_index(self, highlights: Sequence[Mapping[str, Any]]) -> None:
        """What is drawn, for the run's page: ``overlays/index.json``."""
        folders, paths = self._drawn(), self.watched.batch.paths
        watched = [
            {
                "name": name,
                "true": self.class_names[self._true(index)],
                **(_file_facts(Path(paths[index]).resolve()) if paths and Path(paths[index]).is_file() else {}),
                "strips": {method: f"strips/{under}{name}.png" for method, under in folders},
                "frames": [
                    self._entry(epoch, index, method, under)
                    for method, under in folders
                    for epoch in self._epochs(method)
                ],
            }
            for index, name in enumerate(self.watched.names)
        ]
        content = {"methods": list(self.methods), "watched": watched, "highlights": highlights}
        write_whole(self.folder / Path(INDEX).name, to_json(content))

    def missing(self) -> list[int]:
        """Epochs of which a watched image's picture is not on disk."""
        return [
            epoch
            for epoch in sorted(self.observations)
            if not all(
                (self.folder / _frame_file(epoch, under, name)).is_file()
                for method, under in self._drawn()
                if method in self.observations[epoch]["maps"]
                for name in self.watched.names
            )
        ]

    def scale(self, index: int, method: str) -> float:
        """Largest raw map value of an image so far: what is drawn as full heat."""
        return max(0.0, *(float(self.observations[e]["maps"][method][index].max()) for e in self._epochs(method)))

    # ------------------------------------------------------------ pictures

    def _drawn(self) -> list[tuple[str, str]]:
        """The methods that were asked in any epoch, and their folders."""
        return [(name, under) for name, under in method_folders(self.methods).items() if self._epochs(name)]

    def _epochs(self, method: str) -> list[int]:
        """Those in which the method was asked."""
        return [epoch for epoch in sorted(self.observations) if method in self.observations[epoch]["maps"]]

    def _true(self, index: int) -> int:
        labels = self.watched.batch.labels
        return 0 if labels is None else int(labels[index])

    def _is_wrong(self, epoch: int, index: int) -> bool:
        """Whether the predicted class is not the image's, or of several labels none of them."""
        predicted, present = int(self.observations[epoch]["classes"][index]), self.watched.present
        return predicted != self._true(index) if present is None else not bool(present[index, predicted])

    def _boxes(self, index: int) -> Tensor | None:
        boxes = self.watched.boxes
        return None if boxes is None else boxes[index]

    def _entry(self, epoch: int, index: int, method: str, under: str) -> dict[str, Any]:
        observation, name = self.observations[epoch], self.watched.names[index]
        caption = _caption(self.class_names[int(observation["classes"][index])], observation["probabilities"][index])
        entry = {"epoch": epoch, "method": method, "file": _frame_file(epoch, under, name), "caption": caption}
        if self._is_wrong(epoch, index):
            entry["predicted"] = _predicted(_frame_file(epoch, under, name))
        return entry

    def _write_frame(self, epoch: int, index: int, method: str, under: str) -> tuple[_Drawn, bytes]:
        file, drawn = _frame_file(epoch, under, self.watched.names[index]), self._frame(epoch, index, method)
        if self._is_wrong(epoch, index):
            self._write(self._frame(epoch, index, method, of_predicted=True).picture, _predicted(file))
        return drawn, self._write(drawn.picture, file)

    def _frame(self, epoch: int, index: int, method: str, *, of_predicted: bool = False) -> _Drawn:
        observation = self.observations[epoch]
        # Of several labels that are right the predicted one is shown; else the place of the true class is 1.
        pair = [0, 1] if self.watched.present is None or self._is_wrong(epoch, index) else [0, 0]
        classes = (int(observation["classes"][index]), self._true(index))
        figures = (observation["maps"][method], observation["logits"], observation["probabilities"])
        return self._overlay(
            self.watched.pictures[index],
            (classes[pair[0]], classes[pair[1]]),
            (figures[0][index][pair], figures[1][index][pair], figures[2][index][pair]),
            self._boxes(index),
            f"{self.watched.names[index]} · epoch {epoch}{self._note(method)}",
            threshold=float(observation["threshold"]),
            scale=self.scale(index, method),
            of_predicted=of_predicted,
        )

    def _highlight(self, epoch: int, highlight: DrawnHighlight, *, of_predicted: bool = False) -> _Drawn:
        return self._overlay(
            highlight.picture.float() / 255,
            highlight.classes,
            (highlight.maps, highlight.logits, highlight.probabilities),
            highlight.boxes,
            f"{highlight.name} · epoch {epoch}",
            threshold=float(self.observations[epoch]["threshold"]),
            scale=max(0.0, float(highlight.maps.max())),
            of_predicted=of_predicted,
        )

    def _overlay(
        self, image: Tensor, classes: tuple[int, int], predictions: tuple[Tensor, Tensor, Tensor], boxes: Tensor | None,
        title: str, *, threshold: float, scale: float, of_predicted: bool,
    ) -> _Drawn:  # fmt: skip
        """A picture of the predicted and the true class: their maps (2, h, w), logits and probabilities (2,)."""
        predicted, true = (
            ClassMap(self.class_names[k], one, float(logit), float(p))
            for k, one, logit, p in zip(classes, *predictions, strict=True)
        )
        rule = DEFAULT_RULE if math.isnan(threshold) else BoxRule(*self.normalizer, threshold)
        shown = (predicted if of_predicted else true).map_hw
        size = (image.shape[-2], image.shape[-1])
        region = rule.masks(shown[None], size)[0].numpy()
        picture = overlay_picture(
            image,
            true,
            predicted,
            scale=scale,
            boxes=boxes,
            region=Region(region, rule),
            colormap=self.colormap,
            title=title,
            of_predicted=of_predicted,
        )
        drawn_boxes = {"found": boxes_in_overlay(rule.mask_boxes(region), size, 2)}
        truth = {} if boxes is None else {"ground truth": boxes_in_overlay(boxes.numpy(), size, 0)}
        return _Drawn(picture, {name: places for name, places in (truth | drawn_boxes).items() if places})

    def _strip(self, index: int, method: str) -> Image.Image:
        observations = {epoch: self.observations[epoch] for epoch in self._epochs(method)}
        return strip_picture(
            self.watched.pictures[index],
            [observation["maps"][method][index, 1] for observation in observations.values()],
            [
                f"{epoch} · p {observation['probabilities'][index, 1]:.2f}"
                for epoch, observation in observations.items()
            ],
            scale=self.scale(index, method),
            boxes=self._boxes(index),
            colormap=self.colormap,
            title=(
                f"{self.watched.names[index]} · map of {self.class_names[self._true(index)]} by epoch"
                f"{self._note(method)}"
            ),
        )

    def _note(self, method: str) -> str:
        return "" if method == self.methods[0] else f" · {method}"

    def _write(self, picture: Image.Image, file: str) -> bytes:
        png = encoded(picture, "png")
        write_whole(self.folder / file, png)
        return png


@lru_cache(maxsize=256)
def _file_facts(path: Path) -> dict[str, str]:
    """Where an image lies, and which one it is wherever it lies."""
    return {"path": str(path), "sha256": file_sha256(path)}


def highlight_entry(epoch: int, highlight: DrawnHighlight, class_names: Sequence[str]) -> dict[str, Any]:
    """An image that is worth a look, as the index has it."""
    predicted, true = (class_names[number] for number in highlight.classes)
    file = _highlight_file(epoch, highlight)
    entry = {
        "kind": highlight.kind,
        "epoch": epoch,
        "name": highlight.name,
        "true": true,
        "method": "cam",
        "file": file,
    }
    if highlight.is_wrong:
        entry["predicted"] = _predicted(file)
    return {**entry, "caption": _caption(predicted, highlight.probabilities)}


def method_folders(methods: Sequence[str]) -> dict[str, str]:
    """Where below ``epoch_000/``, ``strips/`` and ``animations/`` a method's pictures lie: ``""`` for the first one."""
    folders: dict[str, str] = {}
    for method in methods:
        folder = slug(method.replace("+", "_plus"))  # as a file name gradcam++ would be gradcam
        while f"{folder}/" in folders.values() or folder in ("predicted", *HIGHLIGHT_KINDS):
            folder += "_"
        folders[method] = f"{folder}/" if folders else ""
    return folders


def _caption(predicted: str, probabilities: Tensor) -> str:
    return f"predicted {predicted}, p {float(probabilities[0]):.2f}"


def _frame_file(epoch: int, under: str, name: str) -> str:
    return f"epoch_{epoch:03d}/{under}{name}.png"


def _highlight_file(epoch: int, highlight: DrawnHighlight) -> str:
    return f"epoch_{epoch:03d}/{highlight.kind}/{highlight.place}_{slug(highlight.name)}.png"


def _predicted(file: str) -> str:
    """Where the picture of the predicted class lies, beside one of the true class."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/predicted/{name}"
