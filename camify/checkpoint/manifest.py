"""A network's manifest: everything but its weights as JSON values, and the network that a manifest describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..boxes import BoxRule
from ..errors import CheckpointError
from ..eval_mode import eval_mode
from . import architecture
from .bounds import check_needs
from .certificate import TOLERANCE, Certificate

__all__ = ["compare_written", "finite_values", "manifest_of", "network_of"]


def manifest_of(model: Any) -> dict[str, Any]:
    """Of a ``CAMNet``: architecture, task, names, preprocessing, certificate and results of a network, as JSON values.

    Raises:
        ConversionError: the features hold a layer that cannot be stored without code.
    """
    return {
        "class_names": model.class_names,
        "task": str(model.task) if model.task_is_known else None,
        "untrained": list(model.untrained),
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_dict(),
        "license": model.license,
        "recipe": model.recipe,
        "map": model.certificate.map if model.certificate else None,
        "versions": {name: version(name) for name in ("camify", "torch", "torchvision")},
        "results": finite_values(model.results),
        "certificate": model.certificate.to_dict() if model.certificate else None,
        "box_rule": model.box_rule.to_dict() if model.box_rule else None,
        "object_map": model.object_map,
        "architecture": {
            "form": "layers and graph",  # known ones by name: needs no class, torchvision's or the user's
            "modules": {"features": "features", "classifier": "classifier"},  # as other tools ask for them
            "pool": model.pool_name,
            "dropout": model.dropout.p,
            "num_features": model.num_features,
            "num_classes": model.num_classes,
            "bias": model.classifier.bias is not None,
            "head_layers": list(model.head_layers),
            "features": architecture.describe(model.features),
        },
    }


def finite_values(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them: NaN and infinity are not measured, None."""
    bad = {name for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in bad else value for name, value in figures.items()}


def network_of(kind: Any, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], path: Path) -> Any:
    """The ``kind`` (``CAMNet``) of tensors and a manifest that ``path`` holds, in eval mode; its identity is checked.

    Raises:
        CheckpointError: they contradict each other, or the identity fails.
    """
    try:
        model = _assembled(kind, manifest, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit the weights or lacks a field ({error}).") from error
    _check_identity(model, path)
    return model


def _assembled(kind: Any, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    shape = manifest["architecture"]
    with torch.device("meta"):
        classifier = nn.Linear(shape["num_features"], shape["num_classes"], bias=shape["bias"])
    model = kind(
        architecture.build(shape["features"]),
        classifier,
        pool=shape["pool"],
        dropout=shape["dropout"],
        head_layers=shape["head_layers"],
    )
    certificate = None if manifest["certificate"] is None else Certificate.from_dict(manifest["certificate"])
    if certificate is not None:
        shapes = {
            name: tensor.to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }
        model.load_state_dict(shapes, strict=True, assign=True)
        check_needs(model.eval(), model.features, certificate.input_shape)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.certificate = certificate
    model.class_names = manifest["class_names"]
    model.preprocessing, model.results = manifest["preprocessing"], manifest["results"]
    model.task, model.untrained = manifest["task"], tuple(manifest["untrained"])
    model.license, model.recipe, rule = (manifest[key] for key in ("license", "recipe", "box_rule"))
    model.box_rule = None if rule is None else BoxRule.from_dict(rule)
    model.object_map = manifest["object_map"]
    if (model.object_map is None) != (model.object_weight is None):
        raise CheckpointError("object_map contradicts the weights, which have an object_weight or have none.")
    if model.box_rule is not None and model.box_rule.kind == "object" and model.object_weight is None:
        raise CheckpointError("box_rule cuts object maps, and the weights have no object_weight.")
    if model.object_weight is not None and model.object_weight.shape != (model.num_features,):
        raise CheckpointError(f"object_weight is {tuple(model.object_weight.shape)}, not ({model.num_features},).")
    return model.eval()


@torch.no_grad()
def compare_written(model: Any, folder: Path) -> None:
    """Refuse a written folder that does not give its network back, weights and answers.

    Raises:
        CheckpointError: it does not.
    """
    loaded = type(model).from_pretrained(folder)
    own, written = model.state_dict(), loaded.state_dict()
    same = own.keys() == written.keys() and all(torch.equal(own[key].cpu(), written[key]) for key in own)
    if same and model.certificate is not None:
        like = next(model.parameters())
        noise = torch.randn(1, *model.certificate.input_shape, generator=torch.Generator().manual_seed(0)).to(like)
        with eval_mode(model):
            expected = model.forward_features(noise).cpu()
        features = loaded.to(like.dtype).forward_features(noise.cpu())
        same = torch.allclose(features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    if not same:
        raise CheckpointError(
            f"{folder.name}: what was written does not give the network back, and was removed. Please report it,"
            " with the network."
        )


def _check_identity(model: Any, path: Path) -> None:
    """The identity on noise of a quarter of the size, where the network runs on it; else of its own size."""
    if model.pool_name != "gap" or model.certificate is None:
        return
    channels, *sides = model.certificate.input_shape
    failure = ""
    for size in ([max(side // 4, min(side, 32)) for side in sides], sides):
        try:
            probe = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
            error = model.identity_error(probe)
        except Exception as raised:  # noqa: BLE001 - the network is the file's: it can fail in any way
            failure = f"the network does not run on images {(channels, *size)} ({raised})."
            continue
        if error <= TOLERANCE:
            return
        failure = (
            f"the maps do not add up to the logits (error {error:.1e}, allowed {TOLERANCE:.0e})."
            " The weights are damaged or not those of a CAM network."
        )
    raise CheckpointError(f"{path}: {failure}")
