"""A network's manifest: everything but its weights as JSON values, and the network that a manifest describes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..boxes import BoxRule
from ..errors import CheckpointError
from ..eval_mode import eval_mode, full_precision, plain_tensors
from ..maps import identity_error
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
        "certificate": model.certificate.published().to_dict() if model.certificate else None,
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


@plain_tensors()
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


@full_precision()
def compare_written(folder: Path, model: Any, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Refuse to write a folder whose tensors and manifest do not give the network back: weights, logits and maps.

    Raises:
        CheckpointError: they do not, or the network's own code names its tensors otherwise than its steps do.
    """
    try:
        loaded = _assembled(type(model), manifest, tensors)
    except RuntimeError as error:  # of load_state_dict
        raise CheckpointError(
            f"{folder.name}: the network cannot be stored without its own code, in which tensors have other names than"
            " in its steps. Use layers of torch.nn instead, or keep the model in Python."
        ) from error
    own, written = model.state_dict(), loaded.state_dict()
    same = own.keys() == written.keys() and all(torch.equal(own[key].cpu(), written[key]) for key in own)
    if same and model.certificate is not None:
        expected, given = _answers_to_noise(model, loaded, model.certificate)
        same = all(
            torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
            for one, other in zip(given, expected, strict=True)
        )
    if not same:
        raise CheckpointError(
            f"{folder.name}: what was written does not give the network back, and was removed. Please report it,"
            " with the network."
        )
    if model.certificate is not None:
        _check_identity(loaded, folder, given)


@torch.no_grad()
def _answers_to_noise(
    model: Any, loaded: Any, certificate: Certificate
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Logits and maps of both, of small noise where the network runs on it; else of its own size."""
    like = next(model.parameters())
    *smaller, whole = _sizes_to_try(certificate)
    for size in smaller:
        with contextlib.suppress(Exception), eval_mode(model):
            expected = model.forward_with_maps(_noise(size).to(like))
            break
    else:
        size = whole
        with eval_mode(model):
            expected = model.forward_with_maps(_noise(size).to(like))
    given = loaded.to(like).forward_with_maps(_noise(size).to(like))  # with the same rounding
    return expected, given


def _sizes_to_try(certificate: Certificate) -> list[tuple[int, ...]]:
    """A map of two cells by two, but at least 32 and at most a quarter of the pixels a side; the network's own size."""
    channels, *sides = certificate.input_shape
    strides = (side / cells for side, cells in zip(sides, certificate.map_size, strict=True))
    small = [
        max(min(side, 32), min(side // 4, math.ceil(2 * stride))) for side, stride in zip(sides, strides, strict=True)
    ]
    return [(channels, *small), (channels, *sides)]


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _check_identity(model: Any, path: Path, answers: tuple[Tensor, Tensor] | None = None) -> None:
    """The identity on small noise, where the network runs on it; else on noise of its own size.

    Logits and maps that the network gave already are enough, but those of half precision, whose rounding is larger.
    """
    if model.pool_name != "gap" or model.certificate is None:
        return
    failure = ""
    for size in _sizes_to_try(model.certificate):
        try:
            if answers is not None and answers[0].dtype in (torch.float32, torch.float64):
                error = _error_of(model, *answers)
            else:
                error = model.identity_error(_noise(size))
        except Exception as raised:  # noqa: BLE001 - the network is the file's: it can fail in any way
            failure = f"the network does not run on images {size} ({raised})."
            continue
        failure = _identity_failure(error)
        if not failure:
            return
    raise CheckpointError(f"{path}: {failure}")


def _error_of(model: Any, logits: Tensor, maps: Tensor) -> float:
    bias = model.classifier.bias
    return identity_error(logits, maps, torch.zeros_like(logits[0]) if bias is None else bias)


def _identity_failure(error: float) -> str:
    return (
        ""
        if error <= TOLERANCE
        else f"the maps do not add up to the logits (error {error:.1e}, allowed {TOLERANCE:.0e})."
        " The weights are damaged or not those of a CAM network."
    )
