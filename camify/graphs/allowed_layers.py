"""The layers and tensor functions that a stored network may name, and no others."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2, _patch_merging_pad

from .padded_layers import PaddedAvgPool2d, SamePad2d

__all__ = ["FUNCTIONS", "LAYERS", "LAYER_NAMES", "METHODS"]

_NN = """
Conv1d Conv2d ConvTranspose2d Linear Identity Flatten Unflatten
BatchNorm1d BatchNorm2d SyncBatchNorm LayerNorm GroupNorm InstanceNorm2d LocalResponseNorm
ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Hardtanh Hardswish Hardsigmoid Softplus
Softsign Softshrink Hardshrink Tanhshrink Softmax LogSoftmax LogSigmoid
MaxPool2d AvgPool2d LPPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d
MultiheadAttention
Dropout Dropout1d Dropout2d AlphaDropout FeatureAlphaDropout
ZeroPad2d ReflectionPad2d ReplicationPad2d ConstantPad2d CircularPad2d
ChannelShuffle PixelShuffle PixelUnshuffle Upsample
"""
_F = """
relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus
softmax max_pool2d avg_pool2d lp_pool2d adaptive_avg_pool2d adaptive_max_pool2d dropout dropout1d dropout2d
alpha_dropout feature_alpha_dropout conv2d linear batch_norm layer_norm group_norm instance_norm
local_response_norm normalize pad interpolate channel_shuffle pixel_shuffle pixel_unshuffle
scaled_dot_product_attention embedding
"""
_TORCH = """
add sub mul div matmul cat concat stack flatten reshape permute transpose squeeze unsqueeze split chunk unbind
relu relu_ sigmoid tanh softmax erf exp log sqrt rsqrt abs neg pow clamp mean sum amax amin var std max min
flip roll where adaptive_avg_pool1d avg_pool1d einsum swapaxes
"""
_OPERATOR = "add sub mul truediv floordiv mod neg pow matmul getitem iadd isub imul itruediv"
_TENSOR = """
add add_ sub sub_ mul mul_ div div_ neg abs pow exp log sqrt rsqrt clamp clamp_ matmul mean sum amax amin
var std relu relu_ sigmoid sigmoid_ tanh tanh_ softmax flatten view reshape permute transpose squeeze
unsqueeze split chunk unbind expand expand_as repeat contiguous size dim float half type_as to flip roll
masked_fill unflatten swapaxes max min norm reshape_as clone
"""

LAYERS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _NN.split()} | {
    "camify.graphs.padded_layers.PaddedAvgPool2d": PaddedAvgPool2d,
    "camify.graphs.padded_layers.SamePad2d": SamePad2d,
    "torchvision.ops.StochasticDepth": torchvision.ops.StochasticDepth,
    "torchvision.ops.Permute": torchvision.ops.Permute,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ShiftedWindowAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": ShiftedWindowAttentionV2,
}
FUNCTIONS: dict[str, Callable[..., Any]] = (
    {f"torch.nn.functional.{name}": getattr(F, name) for name in _F.split()}
    | {f"torch.{name}": getattr(torch, name) for name in _TORCH.split()}
    | {f"operator.{name}": getattr(operator, name) for name in _OPERATOR.split()}
    | {"torch.norm": torch.norm, "torch.linalg.vector_norm": torch.linalg.vector_norm}
    | {"torchvision.models.swin_transformer._patch_merging_pad": _patch_merging_pad}
    | {"getattr": getattr}  # of a tensor's shape only, checked by architecture.py where it is read and written
)
METHODS = frozenset(_TENSOR.split())
LAYER_NAMES = {cls: name for name, cls in LAYERS.items()}
