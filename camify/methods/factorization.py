"""Deep feature factorization: the activations of images as a few concepts that they share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..console import shown
from ..errors import ConfigError, ConversionError
from ..sources import Source, source_of
from ..task import Classes, Task
from .forward_pass import ForwardPass, left_as_it_was, observe, unwrapped
from .given_images import network_input

__all__ = ["FeatureFactors", "factorize"]

_LARGEST_SEED = 2**32 - 1  # of NumPy
_CHUNK = 16  # images in one forward
_TOLERANCE, _ROUNDS = 1e-5, 1000  # of the factorization


@dataclass(frozen=True)
class FeatureFactors:
    """Concepts of images, those that explain most of the activations first.

    Attributes:
        maps_NPhw: where each of the P concepts is in each image: 1 at its strongest cell of all images, never negative.
        vectors_PC: what the concepts are in the C channels, never negative; activations are about the sum over the
            concepts of map times vector.
        logits_PK: what the head says where every cell is the concept's vector.
        shares_P: of the sum of what is explained, adding up to 1.
        relative_error: norm of what is not explained, over that of the activations (Frobenius).
        layer: name of the layer.
        classes: what the logits mean.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        >>> _ = nn.init.ones_(network[0].weight)
        >>> factors = factorize(network, torch.rand(4, 1, 8, 8), concepts=1)
        >>> factors.vectors_PC.shape, factors.probabilities_PK.shape, len(factors.top_classes(2)[0])
        (torch.Size([1, 2]), torch.Size([1, 3]), 2)
    """

    maps_NPhw: Tensor  # noqa: N815 - axes
    vectors_PC: Tensor  # noqa: N815 - axes
    logits_PK: Tensor  # noqa: N815 - axes
    shares_P: Tensor  # noqa: N815 - axes
    relative_error: float
    layer: str
    classes: Classes

    @property
    def probabilities_PK(self) -> Tensor:  # noqa: N802 - axes
        """Of the classes, for each concept."""
        return self.classes.probabilities(self.logits_PK)

    def top_classes(self, count: int = 2) -> list[list[int]]:
        """For each concept the classes that the head says of it, the first one first."""
        classes: list[list[int]] = self.classes.ranked(self.logits_PK, count).tolist()
        return classes


def factorize(
    model: nn.Module | str | Source,
    images: Any,
    concepts: int = 4,
    layer: str | None = None,
    seed: int = 0,
    *,
    task: str | Task | None = None,
    class_names: Sequence[str] | None = None,
) -> FeatureFactors:
    """The activations of one or several images as a few concepts that they share; needs scikit-learn.

    Collins, Achanta & Süsstrunk 2018, "Deep Feature Factorization for Concept Discovery", section 3: the activations
    after their ReLU, one row for each cell of each image, (N h w, C), are factorized into two matrices without negative
    values (NMF, the squared error; ``sklearn.decomposition.NMF``). The paper leaves open how the factors are scaled:
    here the map of a concept is 1 where it is strongest, so its vector is in the measure of activations. What a concept
    means to the network is what the head says of its vector in every cell; of heads that read more of an image than the
    map, such as class tokens, the mean over the images.

    Args:
        model: any network that classifies images, or a source; left as it was.
        images: as ``camify.explain`` takes them.
        concepts: P, at least 1. Those that exceed the rank of the activations explain nothing more.
        layer: exact name of a module; None is the last spatial map.
        seed: of what the factorization draws.
        task: what the logits mean; None: what the network says.
        class_names: in order; None: the network's own.

    Raises:
        ConfigError: scikit-learn is missing, or concepts is no positive number, or the seed none from 0 to 2^32 - 1, or
            there is no such layer.
        ConversionError: no activation is positive, or the network cannot be run.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> factors = factorize(network, torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), concepts=1)
        >>> factors.maps_NPhw[0, 0], factors.logits_PK
        (tensor([[0.2500, 0.5000],
                [0.7500, 1.0000]]), tensor([[5., 5.]]))
    """
    if isinstance(concepts, bool) or not isinstance(concepts, int) or concepts < 1:
        raise ConfigError(f"concepts={concepts!r}: must be a whole number of at least 1.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise ConfigError(f"seed={seed!r}: must be a whole number from 0 to {_LARGEST_SEED}.")
    if not (layer is None or isinstance(layer, str)):
        raise ConfigError(f"layer={shown(repr(layer))[:80]}: give the name of one module, or None.")
    _require_sklearn()
    source = source_of(unwrapped(model) if isinstance(model, nn.Module) else model).explained_by(["factorize"])
    network = source.model
    batch = network_input(network, images, source.preprocessing, source.input_size)
    forwards = list[ForwardPass]()
    for chunk in torch.split(batch, _CHUNK):
        with observe(
            network, chunk, layer, task=task or source.task, class_names=class_names or source.class_names
        ) as forward:
            forwards.append(forward)
    activations = torch.cat([forward.activations for forward in forwards]).relu()
    if not bool(activations.any()):
        raise ConversionError(
            f"layer {forwards[0].layer}: no activation of the images is positive, so there is nothing to factorize."
            " Give another layer."
        )
    count, channels, height, width = activations.shape
    cells_MC = activations.movedim(1, -1).reshape(-1, channels).double().cpu().numpy()
    maps_MP, vectors_PC = _sorted_factors(*_factors(cells_MC, concepts, seed))
    amounts = maps_MP.sum(0) * vectors_PC.sum(1)
    error = np.linalg.norm(cells_MC - maps_MP @ vectors_PC) / np.linalg.norm(cells_MC)
    vectors = torch.from_numpy(vectors_PC).to(activations)
    with left_as_it_was(unwrapped(network)):
        logits = _logits(forwards, vectors)
    return FeatureFactors(
        torch.from_numpy(maps_MP).to(activations).reshape(count, height, width, concepts).movedim(-1, 1).contiguous(),
        vectors, logits, torch.from_numpy(amounts / amounts.sum()).to(activations), float(error), forwards[0].layer,
        forwards[0].classes,
    )  # fmt: skip


def _require_sklearn() -> None:
    try:
        import sklearn.decomposition  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ConfigError("Concepts need scikit-learn. Install it: pip install 'camify[concepts]'") from error


def _factors(cells_MC: NDArray[Any], concepts: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two matrices (M, P) and (P, C) whose product is near the cells."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    size = np.abs(cells_MC).max()  # tolerances are of values near 1
    factorization = NMF(concepts, tol=_TOLERANCE, max_iter=_ROUNDS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the error that is left is told
        maps_MP = factorization.fit_transform(cells_MC / size)
    return maps_MP, factorization.components_ * size


def _sorted_factors(maps_MP: NDArray[Any], vectors_PC: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Maps whose peak is 1, and their vectors; what explains most first. A concept that is nowhere has a zero map."""
    peaks = maps_MP.max(0)
    maps, vectors = maps_MP / np.where(peaks > 0, peaks, 1), vectors_PC * peaks[:, None]
    order = np.argsort(-maps.sum(0) * vectors.sum(1), kind="stable")
    return maps[:, order], vectors[order]


def _logits(forwards: Sequence[ForwardPass], vectors_PC: Tensor) -> Tensor:
    """What the head says (P, K) of maps all of whose cells are a vector."""
    height, width = forwards[0].activations.shape[-2:]
    maps_PChw = vectors_PC[:, :, None, None].repeat(1, 1, height, width)
    if forwards[0].takes_any_batch:
        return forwards[0].head(maps_PChw)
    means = []
    for one_Chw in maps_PChw:
        logits = [forward.head(one_Chw.repeat(len(forward.images), 1, 1, 1)) for forward in forwards]
        means.append(torch.cat(logits).mean(0))
    return torch.stack(means)
