"""The legacy network beside the one that is trained: whether its classes are the data's, and what it is used for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from ..console import shown
from ..eval_mode import eval_mode
from ..logits import logits_of
from ..model import CAMNet
from ..task import Classes
from .loaders import single_loader, some_batches

__all__ = ["ClassCheck", "LegacyNetwork", "check_classes"]

_IMAGES = 256  # training images that are looked at: tells chance from knowledge
_ERRORS = 4.0  # standard errors above chance


class LegacyNetwork:
    """The legacy network of a run; no part of the module, so that it is never trained, moved or saved with it.

    Attributes:
        network: gives logits; None where its classes are not the data's, or where it is needed no more.
        teacher: the network whose logits are a second target, while there is one.
        notes: what was found out about its classes.
    """

    def __init__(self, network: nn.Module | None, *, unproven: bool) -> None:
        self.network = network
        self.teacher: nn.Module | None = None
        self.notes: list[str] = []
        self._unproven = unproven

    def let_go(self, *, teacher: nn.Module | None = None) -> None:
        """Free its memory; only a teacher stays."""
        self.network, self.teacher = None, teacher

    def trusted(self, module: Any) -> nn.Module | None:
        """The network where its classes are the data's; measured once, when training starts, if nothing says so.

        Equal counts are not equal classes. A legacy network whose classes have no names is believed where its accuracy
        on training labels is well above chance; else labels take its place, and rows of the classifier that were kept
        from it are drawn anew.

        Args:
            module: the ``CAMFineTuner``, in its trainer.
        """
        if self.network is None or not self._unproven:
            return self.network
        self._unproven = False
        loader = single_loader(module.trainer.train_dataloader)
        titles = module.classes.titles(module.num_classes)
        check = check_classes(self.network, loader, module.targets, module.classes, module.device)
        description = check.describe(titles)
        if check.trusted:
            self._say(f"The legacy network's classes have no names; its accuracy is {description}: believed.")
            return self.network
        first = module.trainer.global_step == 0  # a run that goes on has trained them
        rows = " Its classifier's rows were not kept but drawn anew." if first and _redraw_kept(module.cam_net) else ""
        self._say(
            f"The legacy network is not taken to know the data's classes: its accuracy is {description}. Labels are"
            f" used instead.{rows} If it does, name its classes: class_to_idx or classes in its file, or"
            " legacy_class_names."
        )
        self.let_go()
        return None

    def _say(self, note: str) -> None:
        self.notes.append(note)
        rank_zero_info(shown(note))


def _redraw_kept(network: CAMNet | None) -> bool:
    """Draw a classifier whose rows were kept anew; whether there was one."""
    if network is None or "classifier" in network.untrained:
        return False
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    network.untrained = (*network.untrained, "classifier")
    return True


@dataclass(frozen=True)
class ClassCheck:
    """What a legacy network knows of the training labels.

    Attributes:
        accuracy: share of right images; of several labels per image the mean over the labels of how often an image that
            has it gets a larger logit than one that has not.
        chance: of a network that knows nothing of these labels.
        images: how many were looked at.
        exchanged: pairs of classes, by number, of which most images of the first are taken for the second, while those
            of the second are not taken for it: an order of classes that is another one.
    """

    accuracy: float
    chance: float
    images: int
    exchanged: tuple[tuple[int, int], ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether the network's classes are the data's, as far as it can be told."""
        error = math.sqrt(max(self.chance * (1 - self.chance), 0.01) / max(self.images, 1))
        return self.accuracy > self.chance + _ERRORS * error and not self.exchanged

    def describe(self, names: Sequence[str]) -> str:
        """In one sentence what was measured."""
        text = f"{self.accuracy:.1%} on {self.images} training images, where chance is {self.chance:.1%}"
        if self.exchanged:
            first, second = (names[index] for index in self.exchanged[0])
            text += f", and it takes most images of {first!r} for {second!r}"
        return text


@torch.no_grad()
def check_classes(
    legacy: nn.Module, loader: Any, targets_of: Any, classes: Classes, device: torch.device
) -> ClassCheck:
    """Measure a legacy network on training images, evenly spread over the data set.

    Args:
        legacy: gives logits of as many classes; left as it was.
        loader: its data set and collate function are used; no batch of it is.
        targets_of: from a ``Batch`` to its targets.
        classes: what the logits are taken to speak of.
        device: to run on.
    """
    logits, targets = [], []
    home = next(legacy.parameters()).device
    with isolate_rng(), eval_mode(legacy.to(device)):
        for batch in some_batches(loader, _IMAGES):
            images = batch.images.to(next(legacy.parameters()))
            logits.append(logits_of(legacy, images, finite=False).float().cpu())
            targets.append(targets_of(batch).cpu())
    legacy.to(home)
    return _compare(classes, torch.cat(logits), torch.cat(targets))


def _compare(classes: Classes, logits_NK: Tensor, targets: Tensor) -> ClassCheck:
    if not classes.task.exclusive:
        return ClassCheck(_pairs_in_order(logits_NK, targets), 0.5, len(targets))
    labels = classes.of_targets(targets)
    predicted = classes.two_sided(logits_NK).argmax(1)
    count = classes.count(logits_NK.shape[1])
    ones = torch.ones(len(labels), dtype=torch.float32)
    confusion = ones.new_zeros(count, count).index_put_((labels, predicted), ones, accumulate=True)
    sizes = confusion.sum(1)
    share, taken_for = (confusion / sizes[:, None].clamp_min(1)).max(1)
    mostly = {
        index: int(other)
        for index, other in enumerate(taken_for.tolist())
        if sizes[index] >= 2 and float(share[index]) > 0.5
    }
    exchanged = tuple(
        (one, other) for one, other in mostly.items() if other != one and mostly.get(other, other) != other
    )
    accuracy = float((predicted == labels).double().mean())
    return ClassCheck(accuracy, float(sizes.max() / sizes.sum()), len(labels), exchanged)


def _pairs_in_order(logits_NK: Tensor, targets_NK: Tensor) -> float:
    """Mean over labels of the share of (with, without) pairs whose logits are in that order (area under the ROC)."""
    shares = []
    for logits, class_targets in zip(logits_NK.T, targets_NK.T, strict=True):
        present, absent = logits[class_targets >= 0.5], logits[class_targets < 0.5]
        if len(present) and len(absent):
            shares.append(float((present[:, None] > absent[None]).double().mean()))
    return sum(shares) / len(shares) if shares else 0.5
