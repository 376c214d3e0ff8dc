"""The classifier in closed form: one pass over images instead of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import ConfigError, ConversionError, DataError
from ..eval_mode import eval_mode, plain_tensors
from ..logits import logits_of, require_gradients
from ..model import CAMNet
from ..preprocessing import warn_of_other_scale
from ..ranks import ONE, Ranks
from ..task import Task
from .row_sums import RowSums

__all__ = ["FitReport", "fit_head"]

_CHUNK = 32  # images per forward, where they come as one tensor
_GRID = torch.logspace(-9, 3, 49, dtype=torch.float64, device="cpu")  # lambda, in units of the largest eigenvalue
_STRIDE = 4  # every fourth of the grid is one per decade


@dataclass(frozen=True)
class FitReport:
    """What ``fit_head`` did; "before" is measured on all n images, "after" and "loo" on ``kept`` of them, R^2 on all.

    Top-1 is the agreement with the teacher, or the accuracy; KL is mean KL(target || network) in nats, with labels
    the cross-entropy; R^2 is the explained part of the centered targets, with labels before the scores are scaled;
    ridge is lambda of ``sum |y - W x - b|^2 + lambda |W|^2``. The ``kept`` images are drawn at random.

    "After" is measured on images that were fitted; "loo" is the honest figure: each kept image is scored by the fit
    to all images but it, at the same lambda. ``r2_loo`` is 1 - PRESS / TSS (Allen 1974) and can be negative.
    """

    target: str
    n: int
    kept: int
    ridge: float
    agreement_before: float
    agreement_after: float
    agreement_loo: float
    kl_before: float
    kl_after: float
    r2_before: float
    r2_after: float
    r2_loo: float
    seconds: float

    def __str__(self) -> str:
        """The report in six lines."""
        return (
            f"head fitted to {self.target}: {self.n:,} images, ridge {self.ridge:.3g}, {self.seconds:.1f} s\n"
            f"{'':12}{'before':>10}{'after':>10}{'held out':>10}\n"
            f"{'top-1':12}{self.agreement_before:>10.1%}{self.agreement_after:>10.1%}{self.agreement_loo:>10.1%}\n"
            f"{'KL (nats)':12}{self.kl_before:>10.4f}{self.kl_after:>10.4f}\n"
            f"{'R^2':12}{self.r2_before:>10.4f}{self.r2_after:>10.4f}{self.r2_loo:>10.4f}\n"
            f"held out: leave-one-out over {self.kept:,} images of the pass; after: the same images, R^2 on all"
        )


@plain_tensors()
@torch.no_grad()
def fit_head(
    model: CAMNet,
    images_or_loader: Tensor | Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    labels: Tensor | bool | None = None,
    ridge: float | Literal["one_se"] | None = None,
    ranks: Ranks = ONE,
) -> FitReport:
    """Least squares for ``model.classifier`` on the pooled features, in place, from one pass over the images.

    Targets are the teacher's logits, centered per image over the classes (softmax does not see the difference),
    or one-hot labels, centered too. Only sums (C^2 + C K numbers, float64) and 2,048 rows, a uniform sample, are
    kept. With labels the fitted scores are then multiplied by the factor of least cross-entropy of the kept rows'
    leave-one-out scores (temperature scaling, Guo et al. 2017), at most 1 / residual variance: what linear
    discriminant analysis gives two equally frequent classes, so that a separable set does not make the network
    boundlessly sure. ``model.results`` is emptied: those figures were another head's.

    Lambda is the one of least leave-one-out error, ``sum_i |r_i|^2 / (1 - h_i)^2`` with the leverage
    h_i = 1/n + z_i' (Z'Z + lambda I)^-1 z_i of the centered features z_i (Allen 1974, PRESS; Golub, Heath, Wahba
    1979, eq. 1.3): exact up to 2,048 images, beyond that an unbiased estimate from the kept rows. The candidates
    are a log grid of 49 from 1e-9 to 1e3 times the largest eigenvalue of Z'Z, scanned at one per decade and then
    fully about the best: 20 products of rows x C x min(C, K) multiplications.

    ``ridge="one_se"`` goes on from there to the largest lambda of the grid whose held-out top-1, mean over the classes
    there are, is within one standard error of that one's (Breiman et al. 1984; Hastie, Tibshirani, Friedman 2009,
    section 7.10) and which explains half as much: among fits that are equally right the one of smallest weights. The
    logits follow the teacher's less closely, the class maps, which are sums of these weights, become cleaner.

    Args:
        model: the network; its features stay as they are.
        images_or_loader: images (N, 3, H, W), or batches: dicts with ``image`` (and ``label``), pairs or images.
        teacher: gives logits (N, K) of the same images, for instance the legacy network.
        labels: class indices (N,) of an image tensor, or True: the loader's. Either these or a teacher.
        ridge: lambda of ``sum |y - W x - b|^2 + lambda |W|^2``, so it grows with N; 0 is the least-norm solution. None
            and ``"one_se"`` choose it.
        ranks: of several processes, which all call this, each with its part of the images: every so many-th of them,
            from its own number on. Their sums are added; all get the same head, that of one process up to rounding.

    Raises:
        ConfigError: neither or both of teacher and labels, or a ridge that is neither of these.
        ConversionError: the model has no plain weight and bias, or the teacher's logits are not (N, K).
        DataError: images or labels do not fit, are fewer than 2, or give features or targets nothing can be fitted to.
    """
    start = time.perf_counter()
    _check(model, images_or_loader, teacher, labels, ridge)
    head, sums, quality_sums = model.classifier, RowSums(ranks), torch.zeros(2, dtype=torch.float64)
    with eval_mode(model), eval_mode(teacher or model):
        for batch in _batches(images_or_loader, labels):
            images, batch_labels = batch.images, batch.labels
            if batch.size is None:
                warn_of_other_scale(model, images, model.preprocessing, stacklevel=4)
            features = images if batch.size is not None else model.forward_features(images.to(head.weight))
            pooled = model.forward_head(features, pre_logits=True)
            device = pooled.device if pooled.device.type in ("cpu", "cuda") else "cpu"  # others lack float64
            logits, pooled = head(pooled).to(device).double(), pooled.to(device).double()
            y = _one_hot(batch_labels, logits) if teacher is None else _teach(teacher, images, logits)
            if not (pooled.isfinite().all() and y.isfinite().all()):
                raise DataError(f"Features or targets are not finite in images {sums.n} to {sums.n + len(y) - 1}.")
            sums.add(pooled, y)
            quality_sums += torch.stack(_quality(logits, y, teacher is None)).cpu() * len(y)
    sums.join(model.classifier)
    ranks.add(quality_sums)
    if sums.n < 2:
        raise DataError(f"{sums.n} images: at least 2 are needed to fit a classifier.")
    before = (quality_sums / sums.n).tolist()
    weight, bias, report = ranks.first(lambda: _solved(head, sums, ridge, before, labels=teacher is None))
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    model.results, model.untrained = {}, ()
    return replace(report, seconds=time.perf_counter() - start)


def _solved(
    head: nn.Linear, sums: RowSums, ridge: float | str | None, before: Sequence[float], *, labels: bool
) -> tuple[Tensor, Tensor, FitReport]:
    """The weight, the bias and the report, whose figures before are agreement and KL."""
    sums.center()
    r2_before = sums.r2(head.weight.to(sums.mean_x), head.bias.to(sums.mean_x))
    solutions = _Ridge(sums)
    rows, targets = sums.rows[: sums.n], sums.targets[: sums.n]
    lam = solutions.choose() if ridge is None or ridge == "one_se" else float(ridge)
    if ridge == "one_se":
        lam = solutions.smoothest(lam, targets)
    weight = solutions.weight(lam)
    bias = sums.mean_y - weight @ sums.mean_x
    residuals = solutions.held_out(lam)
    r2_after, r2_loo = sums.r2(weight, bias), 1 - float(residuals.square().sum(1).mean()) * sums.n / sums.tss
    scale = _scale(targets - residuals, targets, solutions.spread(lam)) if labels else 1.0
    weight, bias = (scale * weight).to(head.weight), (scale * bias).to(head.bias)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise DataError(f"The solution does not fit into {head.weight.dtype}. Use float32, or a larger ridge.")
    quality_after = _quality(rows @ weight.to(rows).T + bias.to(rows), targets, labels)
    return weight.cpu(), bias.cpu(), FitReport(
        target="labels" if labels else "teacher",
        n=sums.n,
        kept=len(rows),
        ridge=lam,
        agreement_before=before[0],
        agreement_after=float(quality_after[0]),
        agreement_loo=float(_agreement(targets - residuals, targets)),
        kl_before=before[1],
        kl_after=float(quality_after[1]),
        r2_before=r2_before,
        r2_after=r2_after,
        r2_loo=r2_loo,
        seconds=math.nan,
    )  # fmt: skip


class _Ridge:
    """The ridge solutions for every lambda, and what each says of a kept row that it has not seen.

    In the eigenbasis of Z'Z (values s_j): u_i are the row's coordinates, scaled to unit sums of squares over all n,
    and t_j = sum_i u_ij y_i (K numbers). With a_j = lambda / (s_j + lambda), o_i and m_i the residual and 1 - leverage
    at lambda = 0 (Hastie, Tibshirani, Friedman 2009, eq. 3.47 and 7.64),

        r_i = o_i + sum_j a_j u_ij t_j,    1 - h_i = m_i + sum_j a_j u_ij^2 :

    the second a sum of positive terms, so that it keeps its digits where h_i is almost 1.
    """

    def __init__(self, sums: RowSums) -> None:
        values, vectors = torch.linalg.eigh(sums.xx)
        use = values > values[-1].clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
        self.values: Tensor = values[use]
        self.vectors: Tensor = vectors[:, use]
        self.loads: Tensor = self.vectors.T @ sums.xy / self.values.sqrt()[:, None]
        self.tss, self.n, self.free = sums.tss, sums.n, max(sums.n - 1 - len(self.values), 0)
        # Rows that can be met exactly leave no residual: the difference would only be rounding.
        self.rest = max(sums.tss - float(self.loads.square().sum()), 0.0) if self.free else 0.0
        self.rows: Tensor = (sums.rows[: self.n] - sums.mean_x) @ self.vectors / self.values.sqrt()
        self.outside: Tensor = sums.targets[: self.n] - sums.mean_y - self.rows @ self.loads
        self.slack: Tensor = 1 - 1 / self.n - self.rows.square().sum(1)
        # A row that is met exactly at lambda = 0 (alone in its direction, or n <= C) has h = 1 and r = 0 there; near
        # it r / (1 - h) keeps a finite limit, in which lambda cancels. What is left of such a row here is rounding.
        self.met = (self.slack < torch.finfo(torch.float64).eps ** 0.5) | (self.free == 0)
        self.outside[self.met], self.slack[self.met] = 0, 0

    def weight(self, lam: float) -> Tensor:
        """The weight (K, C)."""
        return (self.vectors * (self.values.sqrt() / (self.values + lam)) @ self.loads).T

    def spread(self, lam: float) -> float:
        """The residual variance per degree of freedom, summed over the classes."""
        shrunk = lam / (self.values + lam)
        rss = self.rest + float(shrunk.square() @ self.loads.square().sum(1))
        return rss / max(self.free + float(shrunk.sum()), 1e-12)

    def held_out(self, lam: float) -> Tensor:
        """Residuals (kept, K) of the kept rows, each of the solution to all rows but it."""
        factor, inverse = self._shrinkage(lam)
        return (self.outside + factor * (self.rows @ (inverse * self.loads))) / self._slack(lam)

    def choose(self) -> float:
        """The lambda of least leave-one-out error on the kept rows."""
        outside, loads, beyond = self.outside, self.loads, torch.zeros_like(self.slack)
        if loads.shape[1] > len(loads):
            # More classes than features: turn them so that those in which nothing is explained count by length alone.
            basis = torch.linalg.qr(loads.T).Q
            outside, loads = outside @ basis, loads @ basis
            beyond = (self.outside - outside @ basis.T).square().sum(1)

        def error(lam: float) -> float:
            factor, inverse = self._shrinkage(lam)
            squares = (outside + factor * (self.rows @ (inverse * loads))).square().sum(1) + beyond
            return float((squares / self._slack(lam)[:, 0].square()).sum())

        grid = self._grid()
        coarse = min(range(0, len(grid), _STRIDE), key=lambda index: error(grid[index]))
        best: float = min(grid[max(coarse - _STRIDE + 1, 0) : coarse + _STRIDE], key=error)
        return best

    def smoothest(self, lam: float, targets: Tensor) -> float:
        """The largest lambda of the grid at which held-out top-1 stays within one standard error of that at ``lam``.

        Top-1 is the mean over classes, and half of what the fit at ``lam`` explains must stay: else a fit that only
        knows the most frequent class, or nothing, would pass where no fit knows more.
        """
        truth = targets.argmax(1)
        sizes = truth.bincount(minlength=targets.shape[1])
        occurs = sizes > 0

        def held_out(value: float) -> tuple[float, float]:
            """Top-1, and R^2."""
            residuals = self.held_out(value)
            hits = truth[(targets - residuals).argmax(1) == truth].bincount(minlength=len(sizes))
            r2 = 1 - float(residuals.square().sum(1).mean()) * self.n / self.tss
            return float((hits / sizes)[occurs].mean()), r2

        top1, explained_r2 = held_out(lam)
        count = len(targets)
        share = (top1 * count + 1) / (count + 2)  # Laplace's: where all are right the error is not 0
        least = top1 - math.sqrt(share * (1 - share) * float((1 / sizes[occurs]).mean()) / int(occurs.sum()))
        for larger in (value for value in reversed(self._grid()) if value > lam and explained_r2 > 0):
            larger_top1, larger_r2 = held_out(larger)
            if larger_top1 >= least and larger_r2 >= explained_r2 / 2:
                return larger
        return lam

    def _grid(self) -> list[float]:
        return (_GRID * (float(self.values[-1]) if len(self.values) else 1.0)).tolist()

    def _shrinkage(self, lam: float) -> tuple[Tensor, Tensor]:
        """Factors (kept, 1) and (C, 1) whose product is a_j, or a_j / lambda for rows that are met at lambda = 0."""
        factor = torch.full_like(self.slack, lam).masked_fill(self.met, 1.0)
        return factor[:, None], 1 / (self.values + lam)[:, None]

    def _slack(self, lam: float) -> Tensor:
        """1 - h (kept, 1), or that / lambda."""
        factor, inverse = self._shrinkage(lam)
        return self.slack[:, None] + factor * (self.rows.square() @ inverse)


def _scale(scores: Tensor, targets: Tensor, spread: float) -> float:
    """The factor in 1..min(100, 1 / residual variance) of least cross-entropy, to 1 part in 20."""
    most = min(100.0, max(1.0, (targets.shape[1] - 1) / max(spread, 1e-12)))
    factors = torch.logspace(0, math.log10(most), 96).tolist()
    return float(min(factors, key=lambda factor: float(_quality(factor * scores, targets, True)[1])))


def _probabilities(targets: Tensor, labels: bool) -> Tensor:
    """The target distribution (N, K) of centered logits, or of centered one-hot labels."""
    return (targets + 1 / targets.shape[1]).round() if labels else Task.MULTICLASS.probabilities(targets)


def _quality(logits: Tensor, targets: Tensor, labels: bool) -> tuple[Tensor, Tensor]:
    """Top-1 agreement and mean KL(target || logits) in nats."""
    truth = _probabilities(targets, labels)
    divergence = torch.xlogy(truth, truth) - truth * Task.MULTICLASS.log_probabilities(logits)
    return _agreement(logits, targets), divergence.sum(1).mean()


def _agreement(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of rows (N, K) whose largest entry is in the same place."""
    return (logits.argmax(1) == targets.argmax(1)).double().mean()


def _teach(teacher: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """The teacher's logits (N, K), centered over the classes; images go to its own device and precision."""
    like = next((p for p in teacher.parameters() if p.is_floating_point()), images)
    try:
        y = logits_of(teacher, images.to(like), finite=False)
    except ConversionError as error:
        raise ConversionError(f"teacher: {error}") from error
    if y.shape != logits.shape:
        raise ConversionError(
            f"teacher gives {tuple(y.shape)}, the model logits {tuple(logits.shape)}: they must be alike."
        )
    y = y.to(logits.device).double()
    return y - y.mean(1, keepdim=True)


def _one_hot(labels: Any, logits: Tensor) -> Tensor:
    """One-hot labels (N, K), centered over the classes."""
    count, classes = logits.shape
    is_integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool)
    if not is_integer or labels.shape != (count,):
        raise DataError(f"labels must be {count} class indices, one per image.")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels go from {labels.min()} to {labels.max()}; the model's are 0 to {classes - 1}.")
    return nn.functional.one_hot(labels.long().to(logits.device), classes).double() - 1 / classes


def _batches(source: Tensor | Iterable[Any], labels: Tensor | bool | None) -> Iterator[Batch]:
    """Batches that are not empty; those of kept features (``Batch.size``) hold the last spatial map."""
    if isinstance(source, Tensor):
        cuts = [slice(start, start + _CHUNK) for start in range(0, len(source), _CHUNK)]
        source = [(source[cut], labels[cut]) if isinstance(labels, Tensor) else source[cut] for cut in cuts]
    for item in source:
        batch = Batch.of(item)
        if len(batch):
            yield batch


def _check(model: CAMNet, source: Any, teacher: Any, labels: Tensor | bool | None, ridge: float | str | None) -> None:
    wants_labels = labels is not None and labels is not False
    if wants_labels == (teacher is not None):
        raise ConfigError("Give either teacher= (its logits are the target) or labels=, not both.")
    if wants_labels and isinstance(source, Tensor) != isinstance(labels, Tensor):
        raise ConfigError("labels= is a tensor (N,) for a tensor of images, and True for a loader, which has its own.")
    if isinstance(labels, Tensor) and labels.shape != (len(source),):
        raise DataError(f"labels have the shape {tuple(labels.shape)}; there are {len(source)} images.")
    ridge_is_known = (
        ridge is None or ridge == "one_se" or (not isinstance(ridge, str) and math.isfinite(ridge) and ridge >= 0)
    )
    if not ridge_is_known:
        raise ConfigError(
            f"ridge={ridge!r}: must be a finite number >= 0, None for the one of least leave-one-out error, or 'one_se'"
            " for the largest that is as right."
        )
    head = getattr(model, "classifier", None)
    if not isinstance(model, CAMNet) or not isinstance(head, nn.Linear):
        raise ConversionError(f"{type(model).__name__} is not a CAMNet. Convert the network first.")
    if not isinstance(head.weight, nn.Parameter) or not isinstance(head.bias, nn.Parameter):
        raise ConversionError("model.classifier needs a plain weight and a bias (the intercept of the fit).")
    require_gradients(head)
    if model.task is Task.MULTILABEL:
        raise ConversionError("The model is multilabel; the fit is for classes that exclude each other.")
    if head.out_features < 2:
        raise ConversionError("model.classifier has one class: softmax gives it 1, whatever the weights.")
