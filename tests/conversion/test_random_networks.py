"""Networks that nobody thought of: each is converted with a valid certificate or refused with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from camify import ConversionError, convert, inspect

ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Hardswish]
POOLS = {
    "none": lambda: nn.Identity(), "max": lambda: nn.MaxPool2d(2), "avg": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((3, 2)), "gap": lambda: nn.AdaptiveAvgPool2d(1),
    "gmp": lambda: nn.AdaptiveMaxPool2d(1),
}  # fmt: skip


class Residual(nn.Module):
    def __init__(self, channels, activation):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), activation())

    def forward(self, x):
        return x + self.body(x)


class Branches(nn.Module):
    """An inception-like block of two branches, joined by channels."""

    def __init__(self, channels):
        super().__init__()
        self.left, self.right = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)


class Network(nn.Module):
    """Blocks of convolutions, a pool, a flatten in one of several styles, one to four linear layers."""

    def __init__(self, blocks, pool, style, head):
        super().__init__()
        self.blocks, self.pool, self.style, self.head = nn.Sequential(*blocks), pool, style, nn.Sequential(*head)

    def forward(self, x):
        x = self.pool(self.blocks(x))
        if self.style == "view":
            x = x.view(x.size(0), -1)
        elif self.style == "reshape":
            x = torch.reshape(x, (x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]))
        elif self.style == "mean":
            x = x.mean((2, 3))
        else:
            x = torch.flatten(x, 1)
        return self.head(x)


@st.composite
def networks(draw):
    """A network, the size of its images and how it was built."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    channels = draw(st.sampled_from([1, 3, 4]))
    height, width = draw(st.integers(22, 33)), draw(st.integers(22, 33))
    blocks, current = [], channels
    for _ in range(draw(st.integers(1, 3))):
        activation = draw(st.sampled_from(ACTIVATIONS))
        kind = draw(st.sampled_from(["plain", "pool first", "strided", "grouped", "residual", "branches"]))
        out = draw(st.sampled_from([4, 6, 8]))
        stride = 2 if kind == "strided" else 1
        groups = 2 if kind == "grouped" and current % 2 == 0 else 1
        conv = nn.Conv2d(current, out, draw(st.sampled_from([1, 3])), stride, padding=1, groups=groups)
        current = out
        blocks += [conv, nn.MaxPool2d(2), activation()] if kind == "pool first" else [conv]
        blocks += [nn.BatchNorm2d(out)] if draw(st.booleans()) else []
        blocks += [activation()] if kind != "pool first" else []
        if kind == "residual":
            blocks.append(Residual(out, activation))
        if kind == "branches":
            blocks.append(Branches(out))
            current = 2 * out
        blocks += [nn.Dropout2d()] if draw(st.booleans()) else []
    pool = POOLS[draw(st.sampled_from(sorted(POOLS)))]()
    style = draw(st.sampled_from(["flatten", "view", "reshape", "mean"]))
    body = nn.Sequential(*blocks, pool).eval()
    with torch.no_grad():
        shape = body(torch.zeros(1, channels, height, width)).shape
    width_in = shape[1] if style == "mean" else shape[1:].numel()
    head = []
    for _ in range(draw(st.integers(0, 3))):
        width_out = draw(st.sampled_from([5, 9]))
        head += [nn.Linear(width_in, width_out, bias=draw(st.booleans()))]
        norm = draw(st.sampled_from([None, nn.BatchNorm1d, nn.LayerNorm]))
        head += [norm(width_out)] if norm else []
        head += [draw(st.sampled_from(ACTIVATIONS))()] if draw(st.booleans()) else []
        head += [nn.Dropout()] if draw(st.booleans()) else []
        width_in = width_out
    head += [nn.Linear(width_in, 3)] + ([nn.LogSoftmax(1)] if draw(st.booleans()) else [])
    network = Network(blocks, pool, style, head)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval(), (channels, height, width)


@torch.no_grad()
def check(network, shape, head):
    """Convert and compare; returns the conversion, or None where it was refused with a reason."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        net = convert(network, head=head, input_size=shape[1:], head_channels=4 if head == "gap" else None, seed=0)
    except ConversionError:
        return None
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(9))
    legacy, (logits, maps) = network(images), net.eval().forward_with_maps(images)
    bias = 0 if net.classifier.bias is None else net.classifier.bias
    scale = logits.abs().max().clamp_min(1e-6)
    assert float((maps.double().mean((2, 3)) + bias - logits).abs().max() / scale) < 1e-4, "the identity"
    certificate = net.certificate
    if certificate.legacy_error is not None and not any("pooling comes last" in note for note in certificate.notes):
        found = logits.log_softmax(1) if isinstance(network.head[-1], nn.LogSoftmax) else logits
        torch.testing.assert_close(found, legacy, rtol=1e-3, atol=1e-4 * float(legacy.abs().max()))
    return net


SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=10, **SETTINGS)
@given(networks())
def test_random_networks_convert_or_are_refused(case):
    network, shape = case
    verdict = inspect(network, input_size=shape[1:]).verdict
    for head in ("gap", "direct", "recast"):
        net = check(network, shape, head)
        if verdict == "unsupported":
            assert net is None
        elif head != "recast":
            assert net is not None, f"{head} converts whatever has a map"


@pytest.mark.slow
@settings(max_examples=600, **SETTINGS)
@given(networks())
def test_many_random_networks(case):
    network, shape = case
    for head in ("gap", "direct", "recast"):
        check(network, shape, head)
