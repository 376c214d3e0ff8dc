"""Concepts that image files share: factorized together, drawn and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.image_checks import constant_notes, gray_range_notes
from ..drawing.concepts import CONCEPT_COLORS, ConceptImage, concepts_picture
from ..drawing.encoding import encoded
from ..drawing.primitives import PANEL
from ..errors import ConfigError, DataError
from ..files import CONCEPTS, free_folder, whole_folder
from ..methods import FeatureFactors, factorize
from ..reports.tables import json_values
from .explained_folder import model_sha256
from .images import ImageBatch, image_batches
from .network import ExplainedNetwork, short_names

__all__ = ["ConceptsSummary", "write_concepts"]

PICTURE = "concepts.png"
_TOP = 2  # classes of a concept in the picture; in the file there are more
_LISTED = 5


@dataclass
class ConceptsSummary:
    """What was written.

    Attributes:
        document: what ``concepts.json`` holds.
        unreadable: files that could not be read, with the reason.
        notes: what has to be said.
    """

    document: dict[str, Any]
    unreadable: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_concepts(
    network: ExplainedNetwork,
    files: Sequence[Path],
    out: Path,
    *,
    concepts: int = 4,
    layer: str | None = None,
    seed: int = 0,
    limit: int = 24,
    workers: int = 1,
    overwrite: bool = False,
) -> ConceptsSummary:
    """Factorize the activations of images together, so that a concept is the same in all, and write the folder.

    ``concepts.png``: each image in its own shape beside itself with its concepts in color, and the classes that the
    network's head says of each concept. ``concepts.json``: the same in numbers.

    Args:
        network: whose map is factorized.
        files: images.
        out: folder to write.
        concepts: as many as there are colors that can be told apart.
        layer: exact name of a module; None is the last spatial map.
        seed: of the factorization.
        limit: most images; of more files so many are taken, evenly spread.
        workers: processes that decode.
        overwrite: replace a folder of concepts.

    Raises:
        ConfigError: the folder cannot be written, or there are too many concepts.
        ConversionError: see ``factorize``.
        DataError: no file can be read.
    """
    if not 1 <= concepts <= len(CONCEPT_COLORS):
        raise ConfigError(
            f"concepts={concepts}: choose 1 to {len(CONCEPT_COLORS)}, as many as there are colors that can be told"
            " apart. camify.methods.factorize takes any number."
        )
    free_folder(out, CONCEPTS, (CONCEPTS, PICTURE), "--out", overwrite=overwrite)
    chosen = [files[index * len(files) // limit] for index in range(limit)] if len(files) > limit else list(files)
    batches: list[ImageBatch] = list(
        image_batches(chosen, network.preprocessing, batch_size=16, workers=workers, picture_side=PANEL)
    )
    unreadable = {path: reason for batch in batches for path, reason in batch.unreadable.items()}
    read = [batch for batch in batches if batch.paths]
    if not read:
        raise DataError(f"No image could be read: {'; '.join(list(unreadable.values())[:5])}")
    parameter = next(network.model.parameters(), torch.zeros(0))
    factors = factorize(
        network.model, torch.cat([batch.images for batch in read]).to(parameter), concepts, layer, seed,
        task=network.classes.task, class_names=network.classes.names,
    )  # fmt: skip
    document = _document(network, factors, read, seed)
    paths = [path for batch in read for path in batch.paths]
    pictures = [picture for batch in read for picture in batch.pictures]
    images = [
        ConceptImage(picture, maps, path.name)
        for picture, maps, path in zip(pictures, factors.maps_NPhw, paths, strict=True)
    ]
    title = f"{concepts} concept{'s' * (concepts > 1)} in layer {factors.layer} of {short_names([network.name])[0]}"
    unexplained = f"{factors.relative_error:.0%} of the norm of the activations is left unexplained"
    drawn = concepts_picture((title, unexplained), images, [_legend(entry) for entry in document["concepts"]])
    with whole_folder(out) as aside:
        (aside / PICTURE).write_bytes(encoded(drawn, "png"))
        (aside / CONCEPTS).write_text(json.dumps(json_values(document), indent=1) + "\n", encoding="utf-8")
    gray = {path: one for batch in read for path, one in batch.gray_ranges.items()}
    constant = [path for batch in read for path in batch.constant]
    notes = [*gray_range_notes(gray.items()), *constant_notes(constant, len(constant), len(paths))]
    if len(chosen) < len(files):
        notes.append(f"{len(chosen)} of {len(files)} images, evenly spread; --limit takes more")
    return ConceptsSummary(document, unreadable, notes)


def _document(
    network: ExplainedNetwork, factors: FeatureFactors, batches: Sequence[ImageBatch], seed: int
) -> dict[str, Any]:
    titles, probabilities = network.titles, factors.probabilities_PK
    colors = list(CONCEPT_COLORS)
    concepts = [
        {
            "concept": number + 1,
            "color": colors[number],
            "share": float(factors.shares_P[number]),
            "classes": [
                {
                    "class": titles[index],
                    "index": index,
                    "logit": float(factors.logits_PK[number, index]),
                    "probability": float(probabilities[number, index]),
                }
                for index in classes
            ],
        }
        for number, classes in enumerate(factors.top_classes(_LISTED))
    ]
    paths = [path for batch in batches for path in batch.paths]
    sizes = [size for batch in batches for size in batch.sizes]
    peaks = factors.maps_NPhw.amax((2, 3)).tolist()
    return {
        "model": network.name,
        "model_sha256": model_sha256(network.model),
        "layer": factors.layer,
        "seed": seed,
        "task": network.classes.task.value,
        "relative_error": factors.relative_error,
        "concepts": concepts,
        "images": [
            {"image": str(path), "size": list(size), "peaks": own}
            for path, size, own in zip(paths, sizes, peaks, strict=True)
        ],
    }


def _legend(entry: dict[str, Any]) -> tuple[str, str]:
    classes = ", ".join(f"{one['class']} {one['probability']:.2f}" for one in entry["classes"][:_TOP])
    return classes, f"concept {entry['concept']}: {entry['share']:.0%} of what is explained"
