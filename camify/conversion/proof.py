"""The proof of a conversion: what was kept, dropped and new, and that the maps are what the logits are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoint.certificate import TOLERANCE, Certificate, Part
from ..errors import ConversionError
from ..eval_mode import eval_mode
from ..graphs import PLACE_SHOWN, Layout, NetworkAnalysis, place_figures
from ..logits import BATCH_NOTE
from ..maps import identity_error
from ..model import CAMNet
from .recast import Recast, RecastError

__all__ = ["certify"]


@torch.no_grad()
def certify(
    net: CAMNet,
    analysis: NetworkAnalysis,
    source: str,
    head: str,
    kept: list[str],
    recast: Recast | None,
    *,
    finer: bool,
) -> Certificate:  # fmt: skip
    """The certificate of a conversion, from one forward of the images that prove it.

    Raises:
        ConversionError: the maps do not add up to the logits, a kept head does not give the legacy's, or what a recast
            head gives does not follow the image.
    """
    images = analysis.images
    with eval_mode(net):
        logits, maps = net.forward_with_maps(images)
        place = _place(net, images) if maps.shape[2:].numel() > 1 else analysis.place
    _require_place(recast, place, analysis.place)
    if not bool(logits.isfinite().all()):
        raise ConversionError(
            "The converted network gives NaN or infinite logits on the probe. Are the weights damaged?"
        )
    height, width = maps.shape[2:]
    if height * width < 2 and recast is None:
        raise ConversionError(f"The map is {height} x {width} at this input size. Give a larger input_size.")
    bias = torch.zeros_like(logits[0]) if net.classifier.bias is None else net.classifier.bias
    error = identity_error(logits, maps, bias) if net.pool_name == "gap" else None
    if error is not None and not error <= TOLERANCE:
        raise ConversionError(f"The maps do not add up to the logits: error {error:.1e}, allowed {TOLERANCE:.0e}.")
    notes = list(analysis.notes)
    kept_old = recast is not None or net.classifier is analysis.linear
    moved = analysis.reads_token or (recast is not None and recast.pool_moved)
    legacy_error = None
    if kept_old:
        scale = analysis.logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        legacy_error = float((logits - analysis.logits).abs().max() / scale)
        if not legacy_error <= TOLERANCE and not (finer or moved):
            why = f" {BATCH_NOTE}" if analysis.spread.by_batch else ""
            raise ConversionError(f"The kept head does not give the legacy's logits: error {legacy_error:.1e}.{why}")
    if kept_old and analysis.reads_token:
        notes.append("The old head read a class token; it reads the mean of the patches now: the logits are others.")
    elif recast is not None:
        notes += _recast_notes(recast, analysis, legacy_error or 0.0)
    elif finer and kept_old and legacy_error is not None and legacy_error > TOLERANCE:
        notes.append(f"The map is finer, and so is its mean: the logits differ by {legacy_error:.1e} of the largest.")
    elif kept_old and analysis.single_layer:
        notes.append("The network was CAM-ready already; nothing was stripped.")
    return Certificate(
        source=source,
        head=head,
        pool=net.pool_name,
        feature_layer=analysis.feature_layer,
        input_shape=analysis.input_shape,
        map_size=(height, width),
        map_channels=net.num_features,
        num_classes=net.num_classes,
        legacy_classes=analysis.logits.shape[1],
        parts=_recast_parts(net, analysis, recast, kept) if recast else _parts(net, analysis, kept, kept_old),
        identity_error=error,
        legacy_error=legacy_error,
        notes=tuple(notes),
        place=place,
    )


def _place(net: CAMNet, images: Tensor) -> float | None:
    """How much more the cells above a changed patch of the image change than others, see ``place_figures``."""
    features = net.forward_features(images)
    layout = Layout("NCHW", (features.shape[2], features.shape[3]))
    return place_figures(net.forward_features, images, features, [layout])[0]


def _require_place(recast: Recast | None, place: float | None, before: float | None) -> None:
    """Refuse a recast head behind which the map, which followed the image before it, does not any more."""
    if recast is not None and place is not None and before is not None and place < PLACE_SHOWN <= before:
        raise RecastError(
            "a step of the head mixes positions: behind it the cells above a changed patch of the image change"
            f" {place:.2f} times as much as others, before it {before:.2f} times"
        )


def _recast_notes(recast: Recast, analysis: NetworkAnalysis, legacy_error: float) -> list[str]:
    """What a user of the recast network must know."""
    if recast.pool_moved:
        pools = ", and not by the mean alone; here the mean" if recast.pool_replaced else "; here the pooling"
        note = (
            f"The old head pooled before its last layers{pools} comes last: the logits differ by {legacy_error:.1e} of"
            " the largest on the probe."
        )
        return [note]
    if recast.kernel == (1, 1):
        return []
    side, cells = max(analysis.input_shape[1:]), max(recast.kernel)
    note = (
        f"The old head sees {cells} cells a side at once: at {side} px the logits are the legacy's; at larger sizes it"
        f" runs at every position (dense evaluation), at about {round(side * (cells + 6) / cells)} px at 7 a side."
    )
    return [note]


def _recast_parts(net: CAMNet, analysis: NetworkAnalysis, recast: Recast, kept: list[str]) -> tuple[Part, ...]:
    names = tuple(f"{layer.rpartition('.')[2]}." for layer in recast.layers)
    layers = [p for name, p in net.features.named_parameters() if name.startswith(names)]
    head = sum(p.numel() for p in [*layers, *net.classifier.parameters()])
    before = [name for name in kept if name not in recast.layers]
    return (
        Part("features", "kept", _span(before), sum(p.numel() for p in net.parameters()) - head),
        Part("head", "kept", f"{_span(analysis.head_layers)} -> at every position", head),
    )


def _parts(net: CAMNet, analysis: NetworkAnalysis, kept: list[str], kept_old: bool) -> tuple[Part, ...]:
    features = sum(p.numel() for p in net.parameter_groups()["features"])
    total = sum(p.numel() for p in analysis.model.parameters())
    classifier = sum(p.numel() for p in net.classifier.parameters())
    parts = [Part("features", "kept", _span(kept), features)]
    if kept_old:
        parts.append(Part("head", "kept", f"{_span(analysis.head_layers)} -> GAP + linear", classifier))
        return tuple(parts)
    parts.append(Part("head", "dropped", _span(analysis.head_layers), total - features))
    for layer in map(net.features.get_submodule, net.head_layers):
        if isinstance(layer, nn.Conv2d):
            size = sum(p.numel() for p in layer.parameters())
            groups = f", {layer.groups} groups" if layer.groups > 1 else ""
            span = f"3x3, {layer.in_channels} -> {layer.out_channels}{groups}, ReLU"
            parts.append(Part("convolution", "new", span, size))
    linear = f"{net.pool_name.upper()}, linear {net.num_features} -> {net.num_classes}"
    parts.append(Part("classifier", "new", linear, classifier))
    return tuple(parts)


def _span(names: Sequence[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names) or "functions only"
    return f"{names[0]} ... {names[-1]} ({len(names)} layers)"
