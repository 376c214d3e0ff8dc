"""The network as ``torch.export`` has it, with as many dynamic axes as it allows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..errors import ConversionError
from .network import ExportedNetwork

__all__ = ["AXES", "example_of", "export_graph", "quietly"]

AXES = (("batch", "height", "width"), ("batch",), ())
"""Which axes may vary, tried in this order."""
_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir", "root")


def example_of(network: ExportedNetwork, size: tuple[int, int], channels: int, batch: int = 2, seed: int = 0) -> Tensor:
    """A batch as the file takes it: noise, or pictures of noise (uint8)."""
    generator = torch.Generator().manual_seed(seed)
    if network.size is None:
        return torch.randn(batch, channels, *size, generator=generator)
    return torch.randint(0, 256, (batch, *size, 3), generator=generator, dtype=torch.uint8)


def export_graph(
    network: ExportedNetwork, example: Tensor, axes: tuple[str, ...]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The network as a graph of tensor steps, and those of the axes that did become dynamic.

    Raises:
        ConversionError: ``torch.export`` cannot follow the network, or needs fixed sizes.
    """
    places = {"batch": 0, "height": 2, "width": 3} if network.size is None else {"batch": 0, "height": 1, "width": 2}
    shapes = {places[axis]: Dim.AUTO for axis in axes}
    try:
        with quietly(), torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=(shapes or None,))
    except Exception as error:  # it fails in whatever way the network makes it fail
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise ConversionError(f"torch.export cannot follow the network ({type(error).__name__}: {first}).") from error
    image = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "image")
    shape = image.meta["val"].shape
    return program, tuple(axis for axis in axes if not isinstance(shape[places[axis]], int))


@contextmanager
def quietly() -> Iterator[None]:
    """What torch's exporters and onnxruntime's tools say of their own deprecations and progress is not shown."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
