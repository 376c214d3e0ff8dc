"""What a classifier is, and what conversion would do with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..console import as_text, plain_text
from ..errors import ConversionError
from ..eval_mode import full_precision
from ..graphs import NetworkAnalysis, analyze
from ..logits import BATCH_NOTE, chance_note
from ..sources import Source, resolve
from .chance import chance_in_features
from .recast import RecastError, recast_head

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Inspection", "inspect"]


_HEADLESS = ("convertible", "The weights hold the features alone and no head: gap and direct put a new one there.")


@dataclass(frozen=True)
class Inspection:
    """The verdict on a classifier.

    ``verdict`` is ``"native"`` (one linear layer after global average pooling: CAM-ready as it is),
    ``"foldable"`` (the head is linear after pooling once its parts are multiplied out: kept exactly),
    ``"convertible"`` (the head is not linear after pooling: a new one takes its place) or ``"unsupported"``.
    ``num_classes`` is None where the weights hold no head.
    """

    verdict: str
    reason: str
    feature_layer: str | None = None
    head_layers: tuple[str, ...] = ()
    map_size: tuple[int, int] | None = None
    map_channels: int | None = None
    num_classes: int | None = None
    input_shape: tuple[int, int, int] | None = None
    task: str | None = None

    @property
    def cam_ready(self) -> bool:
        """Whether the class maps of this network exist as it stands."""
        return self.verdict == "native"

    def table(self) -> Table:
        """The inspection for a terminal."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("verdict", self.verdict)
        table.add_row("reason", plain_text(self.reason))
        if self.feature_layer is not None and self.map_size is not None and self.input_shape is not None:
            (height, width), (_, input_h, input_w) = self.map_size, self.input_shape
            table.add_row("last spatial map", plain_text(f"{self.feature_layer}, {self.map_channels} channels"))
            table.add_row("map size", f"{height} x {width} at {input_h} x {input_w} px")
            table.add_row("head", plain_text(", ".join(self.head_layers) or "functions only"))
            table.add_row("classes", str(self.num_classes or "not known: the weights hold no head"))
            table.add_row("task", self.task or "not known; multiclass is assumed")
        return table

    def __str__(self) -> str:
        return as_text(self.table())


@full_precision()
def inspect(
    model: nn.Module | str | Source, *, input_size: int | tuple[int, int] | None = None, example: Tensor | None = None
) -> Inspection:
    """What a classifier is: where its last spatial map lies, what follows, and whether it is CAM-ready.

    The network is run, not read: names and types of its layers do not matter. It is left as it was.

    Args:
        model: a network, or a source such as ``"torchvision/vgg16"`` (nothing is downloaded for this).
        input_size: height and width of the input, pixels; None: what the weights expect, else 224.
        example: images (N, C, H, W) to run instead of noise of ``input_size``.
    """
    if isinstance(model, str):
        model = resolve(model, weights=False)
    source = model if isinstance(model, Source) else Source.of(model)
    source.require_layers("it cannot be inspected")
    if source.no_gradients:
        return Inspection(
            "unsupported", f"{source.no_gradients}. It runs forward only; methods such as scorecam explain it"
        )
    try:
        analysis = analyze(source.model, source.size if input_size is None else input_size, example)
    except ConversionError as error:
        return Inspection("unsupported", str(error))
    channels, height, width = analysis.feature_shape
    verdict, reason = _HEADLESS if source.headless else _verdict(analysis)
    if analysis.spread.chance:
        reason = f"{reason} {chance_note(analysis.spread.chance)}"
        if chance_in_features(analysis, analysis.copy_features().features):
            verdict = "unsupported"
            reason += " It comes before the last spatial map, so maps change from call to call. Mend its forward first."
    if analysis.spread.by_batch:
        reason = f"{reason} {BATCH_NOTE}"
    if analysis.activation is not None:
        reason = f"{reason} Its last {analysis.activation} is taken off: logits and maps come before it."
    task = source.task or analysis.task
    return Inspection(
        verdict=verdict,
        reason=reason,
        feature_layer=analysis.feature_layer,
        head_layers=tuple(analysis.head_layers),
        map_size=(height, width),
        map_channels=channels,
        num_classes=None if source.headless else analysis.logits.shape[1],
        input_shape=analysis.input_shape,
        task=str(task) if task is not None else "binary" if analysis.logits.shape[1] == 1 else None,
    )


def _verdict(analysis: NetworkAnalysis) -> tuple[str, str]:
    if analysis.reads_token:
        kept = _recast_does(analysis, "lets it read their mean")
        return "convertible", f"The head reads a class token, not the patches: {kept}, gap and direct replace it."
    if analysis.linear is None:
        left_out = ", ".join(analysis.left_out)
        pools = f" ({left_out} would be left out for a larger map)" if left_out else ""
        kept = _recast_does(analysis, "keeps it")
        return (
            "convertible",
            f"The head is not linear after pooling: {kept}, gap and direct put a new one there{pools}.",
        )
    if analysis.single_layer:
        return "native", "The head is one linear layer after global average pooling: the class maps exist."
    return (
        "foldable",
        "The head is linear after global average pooling: multiplied out it is one layer, exactly.",
    )


def _recast_does(analysis: NetworkAnalysis, does: str) -> str:
    """What becomes of the head by recast, which is tried."""
    if analysis.linear is not None:
        return f"recast {does}"
    try:
        recast_head(analysis)
    except RecastError as refusal:
        return f"recast cannot keep it ({refusal.reason})"
    return f"recast {does}"
