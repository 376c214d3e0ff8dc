"""Samples and batches: plain tensors of an image with its boxes and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .loading import sent_as_one

__all__ = ["collate", "finish"]


def finish(sample: dict[str, Any]) -> dict[str, Any]:
    """A transformed sample with plain tensors: boxes (n, 4) of at least a pixel, mask (H, W) bool."""
    finished = dict(sample)
    finished["image"] = sample["image"].as_subclass(Tensor)
    if "boxes" in sample:
        boxes = sample["boxes"].as_subclass(Tensor).to(torch.float32).reshape(-1, 4)
        finished["boxes"] = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)]
    if "mask" in sample:
        finished["mask"] = sample["mask"].as_subclass(Tensor).bool()
    return finished


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of samples.

    ``image`` (N, C, H, W) and ``label`` (N,), of several labels (N, K); where the samples have them ``boxes`` as a list
    of (n, 4), ``mask`` (N, H, W), and ``path``, ``original_size`` (height, width) and ``check`` as lists.
    """
    labels = [sample["label"] for sample in samples]
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels),
    }
    if any("boxes" in sample for sample in samples):
        nothing = torch.zeros(0, 4, dtype=torch.float32)
        batch["boxes"] = sent_as_one([sample.get("boxes", nothing) for sample in samples])
    if all("mask" in sample for sample in samples):
        batch["mask"] = torch.stack([sample["mask"] for sample in samples])
    for key in ("path", "original_size", "check"):
        if all(key in sample for sample in samples):
            batch[key] = [sample[key] for sample in samples]
    return batch
