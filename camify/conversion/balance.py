"""One scale for the new convolution and the classifier behind it: the same function, easier to train."""

from __future__ import annotations

import torch
from torch import nn

from ..model import CAMNet

__all__ = ["balance_head"]

_HOMOGENEOUS = ("gap", "gmp", "tap")  # pooled(s x) = s pooled(x) for s > 0


@torch.no_grad()
def balance_head(model: CAMNet) -> bool:
    """Every channel's weights in the last new convolution and in the classifier get the same norm, in place.

    A channel of the convolution times s > 0 and its column of the classifier divided by s is the same network, since
    ReLU and pooling are homogeneous; class maps stay too. Equal norms are the form that gradient descent can follow
    at the largest rate (Stock et al. 2019, "Equi-normalization of Neural Networks", section 3). A classifier fitted in
    closed form is far from it: its columns are as large as the pooled features are small.

    Returns:
        Whether there was something to balance: a new convolution with its ReLU at the end of the features, behind
        which the network pools by ``gap``, ``gmp`` or ``tap``, and a plain classifier.
    """
    layers = [model.features.get_submodule(name) for name in model.head_layers]
    layers = [layer for layer in layers if not isinstance(layer, nn.Dropout)]
    head = model.classifier
    ends_well = len(layers) > 1 and isinstance(layers[-2], nn.Conv2d) and isinstance(layers[-1], nn.ReLU)
    if not ends_well or model.pool_name not in _HOMOGENEOUS or not isinstance(head, nn.Linear):
        return False
    conv: nn.Conv2d = layers[-2]  # type: ignore[assignment]
    conv_norms, head_norms = conv.weight.flatten(1).norm(dim=1), head.weight.norm(dim=0)
    factors = torch.where((conv_norms > 0) & (head_norms > 0), (head_norms / conv_norms.clamp_min(1e-30)).sqrt(), 1)
    conv.weight *= factors[:, None, None, None]
    if conv.bias is not None:
        conv.bias *= factors
    head.weight /= factors
    return True
