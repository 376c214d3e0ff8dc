"""Networks that give other outputs for the same image: whether chance takes part before the last spatial map."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ConversionError
from ..eval_mode import eval_mode
from ..graphs import NetworkAnalysis
from ..graphs.untraceable import Record
from ..logits import chance_note

__all__ = ["chance_in_features", "note_of_chance"]


@torch.no_grad()
def chance_in_features(analysis: NetworkAnalysis, features: nn.Module) -> bool:
    """Whether the last spatial map differs from one forward to the next: that of the features, or the network's own.

    Chance that is Python's is fixed in features that were traced; the network's own layer still shows it.
    """
    model, images, layer = analysis.model, analysis.images, analysis.feature_layer
    records = [Record(), Record()]
    with eval_mode(model), eval_mode(features):
        maps = [features(images) for _ in range(2)]
        for record in records:
            record.watch(model, images)
    own = [record.ended.get(layer) for record in records]
    same = torch.equal(*own) if all(isinstance(value, torch.Tensor) for value in own) else True  # type: ignore[arg-type]
    return not (same and torch.equal(*maps))


def note_of_chance(analysis: NetworkAnalysis, features: nn.Module, *, head_stays: bool) -> str:
    """What is said of a network whose logits differ from one forward to the next, where it can be converted.

    Raises:
        ConversionError: chance takes part in what is kept.
    """
    text = chance_note(analysis.spread.chance)
    if chance_in_features(analysis, features):
        raise ConversionError(
            f"{text} It comes before the last spatial map, so the maps would change from call to call. Mend the"
            " network's forward first."
        )
    if head_stays:
        raise ConversionError(
            f"{text} It is in the head, which is to be kept. Mend the network's forward first, or give head='gap',"
            " which puts a new head there."
        )
    return f"{text} It was in the head that was dropped; this network gives the same each time."
