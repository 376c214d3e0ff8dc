"""The networks of a page, with the methods that work on each, and the pictures that it offers to begin with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ConversionError
from ..evaluation.images import image_files
from ..evaluation.network import ExplainedNetwork, explained_network, shared_titles, short_names, usable_device
from ..image_files import has_image_content
from ..methods import CAM, METHODS
from ..preprocessing import Preprocessing
from ..reports.run_folder import INDEX
from ..sources import Source, resolve
from ..task import Task

__all__ = ["MOST_EXAMPLES", "example_files", "open_networks", "watched_files"]

MOST_EXAMPLES = 24
_MOST_NETWORKS = 2
_MOST_FORWARDS = 3000  # that a map may take whose method was not asked for by name: of Score-CAM it is 2048, and less


def open_networks(
    sources: Sequence[str], methods: Sequence[str] | None = None, *, class_names: str | None = None,
    task: str | Task | None = None, preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    bits: int | None = None, device: str | torch.device = "cpu",
) -> list[ExplainedNetwork]:  # fmt: skip
    """The networks of one or two sources; of two the classes are the same.

    Args:
        sources: as ``camify.sources.resolve`` takes them.
        methods: names; None: all that work on a network, but those whose maps take thousands of runs of it.
        class_names: a file of names, see ``read_class_names``; None takes the sources'.
        task: what the logits mean; None takes what a network says.
        preprocessing: what a network expects; of two it is for those that do not say it.
        bits: of gray files, see ``Preprocessing``.
        device: that they are run on.

    Raises:
        ConfigError: there are more than two, their classes differ, or an option cannot be.
        CamifyError: a source cannot be loaded, or a method that was named does not work on it.
    """
    if not 1 <= len(sources) <= _MOST_NETWORKS:
        raise ConfigError(f"{len(sources)} networks: give one, or two to see them side by side.")
    place, networks = usable_device(device), list[ExplainedNetwork]()
    for text, name in zip(sources, short_names(sources), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that are drawn are the same again
            source = resolve(text)
        stated = preprocessing if len(sources) == 1 or source.preprocessing is None else None
        source.model.to(place)
        networks.append(_opened(source, name, methods, task, bits, stated))
    for network in networks:
        network.name_classes(class_names)
    shared_titles(networks)
    return networks


def _opened(
    source: Source, name: str, methods: Sequence[str] | None, task: str | Task | None, bits: int | None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None,
) -> ExplainedNetwork:  # fmt: skip
    tried = _possible_methods(source) if methods is None else list(methods)
    source = source.explained_by(tried)
    network = explained_network(source, name, tried, task=task, bits=bits, preprocessing=preprocessing)
    channels = _try_methods(network)
    if methods is None:
        _leave_out_slow(network, channels)
    refused = ", ".join(network.unserved)
    if network.unserved and (methods is not None or not network.served):
        raise ConversionError(f"{source.name}: {refused} cannot be used: {next(iter(network.unserved.values()))}")
    if refused:
        network.notes.append(f"not offered: {refused} ({network.refusal(next(iter(network.unserved)))})")
    if source.no_gradients:
        network.notes.append(f"{source.no_gradients}: it runs forward only, and {', '.join(tried)} can explain it")
    return network


def _possible_methods(source: Source) -> list[str]:
    """Methods that the kind of a source does not rule out."""
    if source.only_maps:
        return ["cam"]
    if source.no_gradients:
        return [name for name, kind in METHODS.items() if not kind.uses_gradients and kind is not CAM]
    return list(METHODS)


def _try_methods(network: ExplainedNetwork) -> int:
    """Note which methods the network refuses, of those that cost little more than the one forward.

    How many channels its last map has.
    """
    quick = {
        name: method
        for name, method in network.methods.items()
        if (method.uses_gradients and method.further_forwards(1) <= 1) or isinstance(method, CAM)
    }
    preprocessing = network.preprocessing
    image = torch.zeros(1, preprocessing.channels, preprocessing.height, preprocessing.width)
    tried = replace(network, methods=quick)  # what is refused is noted in the dict that both share
    with tried.observe(image) as forward:
        tried.raw_maps(forward, torch.zeros(1, dtype=torch.long, device=forward.logits.device))
        return forward.activations.shape[1]


def _leave_out_slow(network: ExplainedNetwork, channels: int) -> None:
    """Take away the methods whose maps run the network thousands of times, and say so."""
    forwards = {name: method.further_forwards(channels) for name, method in network.methods.items()}
    slow = {name: count for name, count in forwards.items() if count > _MOST_FORWARDS}
    for name in slow:
        del network.methods[name]
    if slow:
        listed = ", ".join(f"{name} {count}" for name, count in slow.items())
        network.notes.append(f"not offered unless named by --method, as a map takes so many runs: {listed}")


# ---------------------------------------------------------------- pictures to begin with


def example_files(folder: str | None, sources: Sequence[str]) -> tuple[list[Path], str]:
    """Image files to begin with, and a line that says which, or why there are none.

    Args:
        folder: of images, or one image; None: the images that the run of a source watched.
        sources: of the networks.

    Raises:
        DataError: the folder does not exist or holds no image.
    """
    if folder is not None:
        files = image_files([folder])
        kept = list(files[:MOST_EXAMPLES])
        more = f", the first of {len(files)}" if len(files) > len(kept) else ""
        return kept, f"examples: {len(kept)} images of {folder}{more}"
    for run in filter(None, map(_run_folder, sources)):
        watched = watched_files(run)
        there = [path for path in watched if has_image_content(path)][:MOST_EXAMPLES]
        if there:
            return there, f"examples: {len(there)} of the images that {run} watched"
        if watched:
            return (
                [],
                f"examples: none, as the images that {run} watched are no longer where they were; give --examples",
            )
        return [], f"examples: none, as {run} does not say where its images lie; give --examples"
    return [], "examples: none; give a folder of images with --examples"


def _run_folder(source: str) -> Path | None:
    """The run folder that a source lies in: itself, or above its export or .ckpt."""
    path = Path(source)
    return next((folder for folder in (path, path.parent) if path.exists() and (folder / INDEX).is_file()), None)


def watched_files(run: Path) -> list[Path]:
    """The image files that a run watched, as far as its ``overlays/index.json`` says where they lie."""
    try:
        watched = json.loads((run / INDEX).read_text(encoding="utf-8"))["watched"]
        return [Path(entry["path"]) for entry in watched if isinstance(entry.get("path"), str) and entry["path"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # the page of the run says what is wrong with it
