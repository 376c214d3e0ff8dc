"""Does the network use what the map shows? Metrics of scores and maps that `functional` makes from a network."""

from __future__ import annotations

from torch import Tensor

from ..errors import DataError
from .base import MeanOfUnitInterval
from .checks import check_maps, check_scores, check_shares
from .functional import adcc, area_under_curve, average_drop, coherency, complexity

__all__ = ["ADCC", "AverageDrop", "AverageIncrease", "Coherency", "Complexity", "DeletionAUC", "InsertionAUC"]


class AverageDrop(MeanOfUnitInterval):
    """Share of its probability that a class loses when only what the map shows is left, mean of max(0, p - p') / p.

    Chattopadhay et al. 2018, "Grad-CAM++", section 4.1, there in percent. Lower is better. How the image is masked
    decides much: see `functional.masked_images`.

    Example:
        >>> import torch
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.7]))
        >>> metric.compute()
        tensor(0.1250)
    """

    higher_is_better = False

    def update(self, scores: Tensor, masked_scores: Tensor) -> None:
        """Add images: probabilities (N,) of one class each, and those of the same classes for the masked images.

        Raises:
            DataError: the shapes differ, or a number is not in [0, 1].
        """
        check_scores("AverageDrop", scores, masked_scores)
        self._add({"": average_drop(scores, masked_scores)})


class AverageIncrease(MeanOfUnitInterval):
    """Share of the images whose class gains probability when only what the map shows is left.

    Chattopadhay et al. 2018, "Grad-CAM++", section 4.1, there in percent.

    Example:
        >>> import torch
        >>> metric = AverageIncrease()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.7]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, scores: Tensor, masked_scores: Tensor) -> None:
        """Add images; arguments and errors as in `AverageDrop.update`."""
        check_scores("AverageIncrease", scores, masked_scores)
        self._add({"": masked_scores > scores})


class Coherency(MeanOfUnitInterval):
    """Likeness of a map and the map of the image masked by it, mean of (1 + Pearson's correlation) / 2.

    Poppi et al. 2021, "Revisiting The Evaluation of Class Activation Mapping for Explainability", section 3. An image
    one of whose maps is constant counts as 0.

    Example:
        >>> import torch
        >>> metric, maps = Coherency(), torch.rand(2, 8, 8)
        >>> metric.update(maps, maps)
        >>> metric.compute()
        tensor(1.)
    """

    def update(self, maps: Tensor, maps_of_masked: Tensor) -> None:
        """Add images: maps (N, H, W) in [0, 1] and those of the masked images, of the same classes.

        Raises:
            DataError: the shapes differ, maps hold NaN or leave [0, 1].
        """
        _check_pair("Coherency", maps, maps_of_masked)
        self._add({"": coherency(maps, maps_of_masked)})


class Complexity(MeanOfUnitInterval):
    """Mean of the map, how much of the image it takes. Poppi et al. 2021, section 3. Lower is better.

    Example:
        >>> import torch
        >>> metric = Complexity()
        >>> metric.update(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def update(self, maps: Tensor) -> None:
        """Add images: maps (N, H, W) in [0, 1].

        Raises:
            DataError: maps hold NaN or leave [0, 1].
        """
        check_maps("Complexity", maps)
        self._add({"": complexity(maps)})


class ADCC(MeanOfUnitInterval):
    """Harmonic mean of coherency, 1 - complexity and 1 - drop of each image, averaged over the images.

    Poppi et al. 2021, section 3, equal to the authors' code. An image for which one of the three is 0 counts as 0.

    Example:
        >>> import torch
        >>> metric, maps = ADCC(), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> metric.update(torch.tensor([0.8]), torch.tensor([0.8]), maps, maps)
        >>> metric.compute()
        tensor(0.7500)
    """

    def update(self, scores: Tensor, masked_scores: Tensor, maps: Tensor, maps_of_masked: Tensor) -> None:
        """Add images: arguments as in `AverageDrop.update` and `Coherency.update`.

        Raises:
            DataError: numbers or shapes do not fit, or a number is NaN or not in [0, 1].
        """
        check_scores("ADCC", scores, masked_scores)
        _check_pair("ADCC", maps, maps_of_masked, len(scores))
        drop = average_drop(scores, masked_scores)
        self._add({"": adcc(drop.to(maps.device), coherency(maps, maps_of_masked), complexity(maps))})


class InsertionAUC(MeanOfUnitInterval):
    """Mean probability of a class while its image is filled in, the map's highest pixels first.

    Petsiuk et al. 2018, "RISE", section 4.1. `functional.insertion_curves` makes the curves.

    Example:
        >>> import torch
        >>> metric = InsertionAUC()
        >>> metric.update(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, curves: Tensor) -> None:
        """Add images: probabilities (N, steps + 1), at least one step.

        Raises:
            DataError: the shape is another, or a number is NaN or not in [0, 1].
        """
        check_shares(type(self).__name__, "curves", curves[:, :2] if curves.dim() == 2 else curves, (None, 2))
        check_shares(type(self).__name__, "curves", curves, (None, None))
        self._add({"": area_under_curve(curves)})


class DeletionAUC(InsertionAUC):
    """Mean probability of a class while its image is emptied, the map's highest pixels first. Lower is better.

    Petsiuk et al. 2018, "RISE", section 4.1. `functional.deletion_curves` makes the curves.

    Example:
        >>> import torch
        >>> metric = DeletionAUC()
        >>> metric.update(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False


def _check_pair(name: str, maps: Tensor, others: Tensor, count: int | None = None) -> None:
    check_maps(name, maps, count)
    check_maps(name, others, len(maps))
    if maps.shape != others.shape:
        raise DataError(f"{name}: maps {tuple(maps.shape)} and maps_of_masked {tuple(others.shape)} differ.")
