"""What a network's logits mean: classes that exclude each other, labels that do not, or one logit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ConfigError, DataError

__all__ = ["Classes", "Task", "class_index"]


_ROUNDING = 0.02  # of shares that add up to 1, in half precision


class Task(str, Enum):
    """What the logits (N, K) say. The only place that makes probabilities of them.

    - ``multiclass``: one of K classes; softmax.
    - ``multilabel``: each of K labels is there or not; sigmoid.
    - ``binary``: one logit, for a class against its absence; sigmoid.
    """

    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    BINARY = "binary"

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def of(cls, given: str | Task | None, logits: int) -> Task:
        """The task as asked for; None derives it: of one logit ``binary``, else ``multiclass``.

        Raises:
            ConfigError: the name is unknown, or does not fit the number of logits.
        """
        if given is None:
            return cls.BINARY if logits == 1 else cls.MULTICLASS
        known = [task.value for task in cls]
        if given not in known:
            raise ConfigError(f"task={given!r} is unknown. Choose one of {', '.join(known)}.")
        task = cls(given)
        if (task is cls.BINARY) != (logits == 1):
            meant = "binary" if logits == 1 else "multiclass or multilabel"
            raise ConfigError(f"task={task.value!r}: the network has {logits} logits. Choose {meant}.")
        return task

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one class."""
        return self is not Task.MULTILABEL

    def targets(self, labels: Tensor, logits: int, *, allow_unknown: bool = False) -> Tensor:
        """Labels as the loss takes them: class indices (N,) or, of several logits, shares (N, K) float.

        Multiclass: whole numbers (N,) or (N, 1) in 0..K-1, or distributions (N, K). Multilabel: (N, K) in [0, 1], float
        or whole; NaN where unknown. Binary: (N,) or (N, 1) in [0, 1], given back as (N, 1) float; NaN where unknown.

        Args:
            labels: as the data give them.
            logits: K.
            allow_unknown: -1 and NaN say that a label is not known, else they are refused.

        Raises:
            DataError: they do not fit the task; says what they are.
        """
        expected = {
            "multiclass": f"(N,) of 0..{logits - 1}",
            "multilabel": f"(N, {logits}) of 0 and 1",
            "binary": "(N,)",
        }
        if self is Task.MULTICLASS and labels.dim() == 2 and labels.shape[1] == logits and logits > 1:
            targets = labels.float()
            whole = bool(((targets.sum(1) - 1).abs() <= _ROUNDING).all())  # NaN is not
            right = whole and float(targets.min()) >= 0
        elif self is Task.MULTICLASS:
            targets = labels[:, 0] if labels.dim() == 2 and labels.shape[1] == 1 else labels
            is_integer = targets.dim() == 1 and (
                not targets.is_floating_point() or bool((targets == targets.round()).all())
            )
            right = is_integer and (not len(targets) or (int(targets.min()) >= 0 and int(targets.max()) < logits))
            targets = targets.long() if right else targets
        else:
            shape = (len(labels), logits)
            targets = labels.float().reshape(shape) if labels.numel() == len(labels) * logits else labels
            if allow_unknown:
                targets = torch.where(targets == -1, torch.nan, targets)
            known_targets = targets[~targets.isnan()] if allow_unknown else targets
            inside = bool(((known_targets >= 0) & (known_targets <= 1)).all())  # NaN is not
            right = targets.shape == shape and inside
        if not right:
            span = f" from {float(labels.min()):g} to {float(labels.max()):g}" if labels.numel() else ""
            hint = " Where -1 or NaN stand for unknown, give allow_unknown_labels=True."
            if self is Task.MULTICLASS:
                hint = " Shares (N, K) add up to 1 in each image; several labels an image are of task multilabel."
                from_one = labels.dim() == 1 and labels.numel() > 0 and labels.min() >= 1 and labels.max() == logits
                counted = " They seem to count from 1; classes count from 0: take 1 from each."
                hint = counted if from_one else hint * (labels.dim() == 2)
            raise DataError(
                f"labels {tuple(labels.shape)}{span} do not fit task {self.value!r} with {logits} logits: expected"
                f" {expected[self.value]}.{hint}"
            )
        return targets

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Probabilities of logits, which lie along ``dim``; float32 at least."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.softmax(dim) if self is Task.MULTICLASS else wide.sigmoid()

    def log_probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Their natural logarithms."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(dim) if self is Task.MULTICLASS else F.logsigmoid(wide)


@dataclass(frozen=True)
class Classes:
    """Which classes a network's logits speak of: the task, and their names in order.

    A network of one logit z speaks of two classes. With two names, (negative, positive), their logits are (-z, z): the
    maps of the first are evidence against, those of the second evidence for. With one name or none they are (z, -z):
    class 0 is what the logit stands for, class 1 its absence. Either way the maps of both add up to their logits.

    Attributes:
        task: see ``Task``.
        names: as they are known, one for each logit; of one logit one or two; None where they are not known.
    """

    task: Task
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, task: str | Task | None, names: Sequence[str] | None, logits: int) -> Classes:
        """The classes of a network of so many logits.

        Raises:
            ConfigError: the task or the number of names does not fit.
        """
        settled = Task.of(task, logits)
        if names is not None and len(names) not in ((1, 2) if settled is Task.BINARY else (logits,)):
            raise ConfigError(f"class_names: {len(names)} names for the network's {logits} logits.")
        return cls(settled, None if names is None else tuple(names))

    @classmethod
    def carried_by(cls, model: object, logits: int, task: str | Task | None = None) -> Classes:
        """What a network says of its logits; of one that says nothing, or with a ``task`` given, as ``of``."""
        carried = getattr(model, "classes", None)
        return carried if isinstance(carried, Classes) and task is None else cls.of(task, None, logits)

    @property
    def positive(self) -> int:
        """Of one logit, the class that it speaks for."""
        return 1 if self.task is Task.BINARY and self.names is not None and len(self.names) == 2 else 0

    def of_targets(self, targets: Tensor) -> Tensor:
        """The class (N,) of targets as ``Task.targets`` gives them; of several labels, or shares, the largest."""
        if self.task is Task.BINARY:
            positive_class = (targets.reshape(len(targets)) >= 0.5).long()
            return positive_class if self.positive else 1 - positive_class
        return targets.nan_to_num(0.0).argmax(1) if targets.dim() == 2 else targets

    def count(self, logits: int) -> int:
        """Number of classes: 2 of one logit."""
        return 2 if self.task is Task.BINARY else logits

    def two_sided(self, values: Tensor, dim: int = 1) -> Tensor:
        """Values that belong to the logits along ``dim``, such as maps or weights, as those of the classes."""
        if self.task is not Task.BINARY or values.shape[dim] != 1:
            return values
        pair = (-values, values) if self.positive else (values, -values)
        return torch.cat(pair, dim)

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Probabilities of the classes' logits."""
        return self.task.probabilities(logits, dim)

    def scores(self, logits_NK: Tensor, targets_N: Tensor) -> Tensor:
        """The probability (N,) of one class per image, from the network's own logits."""
        return self.probabilities(self.two_sided(logits_NK)).gather(1, targets_N[:, None])[:, 0]

    def predicted(self, logits_NK: Tensor) -> Tensor:
        """The class (N,) of the largest logit; of one logit without two names the one that it speaks for."""
        if self.task is Task.BINARY and not self.positive:
            return logits_NK.new_zeros(len(logits_NK), dtype=torch.long)
        return logits_NK.argmax(1)

    def ranked(self, logits_NK: Tensor, count: int) -> Tensor:
        """The ``count`` classes (N, count) of the largest logits, the predicted one first."""
        count = min(count, logits_NK.shape[1])
        if self.task is Task.BINARY and not self.positive:
            return torch.arange(count, device=logits_NK.device).expand(len(logits_NK), -1)
        return logits_NK.topk(count, dim=1).indices

    def titles(self, logits: int) -> list[str]:
        """A name for every class, also where none is known."""
        if self.task is Task.BINARY:
            names = self.names or ("positive",)
            return list(names) if len(names) == 2 else [names[0], f"not {names[0]}"]
        return [f"class {index}" for index in range(logits)] if self.names is None else list(self.names)


def class_index(given: str, names: Sequence[str], option: str) -> int:
    """The class of a name, or of a number.

    Raises:
        ConfigError: there is none; says which there are.

    Example:
        >>> class_index("dog", ["cat", "dog"], "--target"), class_index("0", ["cat", "dog"], "--target")
        (1, 0)
    """
    if given in names:
        return list(names).index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    close = difflib.get_close_matches(given, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise ConfigError(f"{option} {given!r}: no such class.{guess} Known: {listed}.")
