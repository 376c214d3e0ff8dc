"""Layers of other libraries become the layers of torch that they are: same values in both modes, and storable."""

from __future__ import annotations

import copy

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from camify import CAMNet, convert


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: batch norm and activation in one layer, with its own look at ``training``."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class DropPath(nn.Module):
    """As timm's: stochastic depth."""

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, True

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), keep)) / keep


class Legacy(nn.Module):
    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), NormAct(8, act)
        self.conv, self.norm2 = nn.Conv2d(8, 8, 3, 1, 1), NormAct(8, nn.Identity())
        self.path, self.fc = DropPath(0.25), nn.Linear(8, 5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.path(self.norm2(self.conv(x)))
        return self.fc(x.mean((2, 3)))


def test_both_modes_agree_and_the_result_is_stored(tmp_path):
    legacy = Legacy(nn.SiLU(inplace=True))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net = convert(legacy, head="direct", input_size=16)
    kinds = {type(layer) for layer in net.features.modules()}
    assert nn.BatchNorm2d in kinds
    assert torchvision.ops.StochasticDepth in kinds
    assert not kinds & {NormAct, DropPath}
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), copy.deepcopy(legacy).eval()(images), rtol=1e-4, atol=1e-5)
        loaded = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
        torch.testing.assert_close(loaded(images), net(images))
    trained = copy.deepcopy(legacy).train()
    trained.path.drop_prob = 0.0
    next(m for m in net.features.modules() if isinstance(m, torchvision.ops.StochasticDepth)).p = 0.0
    net.train()
    with torch.no_grad():
        torch.testing.assert_close(net(images), trained(images), rtol=1e-4, atol=1e-5)
    state = net.features.state_dict()
    torch.testing.assert_close(state["norm.running_mean"], trained.norm.running_mean)
    torch.testing.assert_close(state["norm2.running_var"], trained.norm2.running_var)
    assert int(state["norm.num_batches_tracked"]) == 1


class Odd(NormAct):
    """Does something else too, so it is not replaced."""

    def forward(self, x):
        return super().forward(x) + 1


def test_what_is_not_equal_stays_as_it_is():
    legacy = Legacy(nn.ReLU())
    legacy.norm = Odd(8, nn.ReLU())
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net = convert(legacy, head="direct", input_size=16).eval()
    assert any(type(layer) is Odd for layer in net.features.modules())
    with torch.no_grad():
        torch.testing.assert_close(net(images), legacy.eval()(images), rtol=1e-4, atol=1e-5)
