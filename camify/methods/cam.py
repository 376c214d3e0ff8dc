"""Class activation mapping."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError, ConversionError
from ..maps import MAP_KINDS, map_weight, weighted_maps
from ..model import CAMNet
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["CAM"]


@register("cam")
class CAM(Method):
    """Class activation maps, M_c(x, y) = sum_k w_kc A_k(x, y).

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", eq. 2. No ReLU, no bias: with global
    average pooling their mean plus the bias is the logit. For a CAMNet, and for a network whose head is global
    average pooling and one linear layer as it stands (ResNet).

    Args:
        model: such a network.
        layer: None; CAM exists at the last spatial map only.
        kind: ``"plain"``, ``"contrast"`` (why this class and no other) or ``"object"`` (where the object is; needs
            ``camify.fit_object_map``); see ``camify.maps.map_weight``.

    Raises:
        ConfigError: the kind is unknown, or the network has no object map.
        ConversionError: the model is not CAM-ready; says how to make it so.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> CAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # weight 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    relu = False

    def __init__(self, model: nn.Module, layer: str | None = None, *, kind: str = "plain") -> None:
        if kind not in MAP_KINDS:
            raise ConfigError(f"kind={kind!r} is unknown. Choose {', '.join(MAP_KINDS)}.")
        if layer is not None:
            raise ConfigError(f"layer={layer!r}: CAM exists at the last spatial map only. Leave it None.")
        super().__init__(model, layer)
        self.kind = kind

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w)."""
        weight = forward.weight
        if weight is None and isinstance(self.model, CAMNet):  # pooled otherwise: the maps exist, not the identity
            classifier_weight = self.model.classifier.weight.detach().to(forward.activations.dtype)
            weight = forward.classes.two_sided(classifier_weight, 0)
        if weight is None:
            raise ConversionError(
                f"CAM needs a CAM-ready network: the head of this {type(self.model).__name__} is not global average"
                " pooling and one linear layer. Use camify.convert(model, ...)."
            )
        object_weight = self.model.object_weight if isinstance(self.model, CAMNet) else None
        exclusive = forward.classes.task.exclusive
        weight = map_weight(weight, self.kind, object_weight, exclusive=exclusive)
        return weighted_maps(forward.activations, weight[targets_N])
