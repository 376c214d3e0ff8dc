"""Maps in other layouts: tokens of transformers, channels last; with and without a class token."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torchvision
from torch import nn

from camify import CAMNet, convert, inspect
from camify.graphs import Layout, guess_layouts
from camify.graphs.layouts import MAP_AXES, TOKEN_AXES

MODELS = torchvision.models


def images(size, count=3, seed=1):
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def vit():
    torch.manual_seed(0)
    network = MODELS.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero
    return network.eval()


class ChannelsLast(nn.Module):
    """As timm's Swin and MetaFormer: (N, h, w, C) up to the pooling."""

    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix = nn.Conv2d(3, 7, 8, 8), nn.Linear(7, 7)
        self.norm, self.fc = nn.LayerNorm(7) if norm else nn.Identity(), nn.Linear(7, 5)

    def maps(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        return x + self.mix(x).relu()

    def forward(self, x):
        return self.fc(self.norm(self.maps(x).mean((1, 2))))


class Tokens(nn.Module):
    """Patches as tokens behind some class tokens; the head reads the patches' mean or the first token."""

    def __init__(self, prefix, reads_token):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.prefix = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, prefix, 12))
        self.mix = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.fc, self.reads_token = nn.Linear(12, 5), reads_token

    def tokens(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.mix(torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1))

    def forward(self, x):
        x = self.tokens(x)
        return self.fc(x[:, 0] if self.reads_token else x[:, self.prefix.shape[1] :].mean(1))


@torch.no_grad()
def test_the_patch_tokens_of_a_vit_are_its_map(tmp_path):
    legacy, batch = vit(), images(32)
    found = inspect(legacy, input_size=32)
    assert (found.verdict, found.feature_layer, found.map_size, found.map_channels) == (
        "convertible",
        "encoder",
        (4, 4),
        16,
    )
    assert "class token" in found.reason
    net = convert(legacy, head="recast", input_size=32)
    tokens = legacy.encoder(torch.cat([legacy.class_token.expand(3, -1, -1), legacy._process_input(batch)], 1))
    weight, bias = legacy.heads.head.weight, legacy.heads.head.bias
    logits, maps = net.forward_with_maps(batch)
    for row in range(4):
        for column in range(4):
            expected = tokens[:, 1 + 4 * row + column] @ weight.T
            torch.testing.assert_close(maps[:, :, row, column], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, tokens[:, 1:].mean(1) @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert torch.equal(net.classifier.weight, weight)
    assert net.certificate.legacy_error > 0.01
    assert any("class token" in note for note in net.certificate.notes)
    loaded = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "vit"))
    torch.testing.assert_close(loaded(batch), logits)


@pytest.mark.parametrize("head", ["gap", "direct"])
def test_other_heads_on_tokens_are_new_and_learn(head):
    legacy = vit()
    net = convert(legacy, head=head, input_size=32, num_classes=3, seed=0)
    assert net.certificate.legacy_error is None
    assert net.certificate.map_size == (4, 4)
    net(images(32)).square().sum().backward()
    patches = next(m for m in net.features.modules() if isinstance(m, nn.Conv2d))
    assert float(patches.weight.grad.abs().max()) > 0


@torch.no_grad()
def test_steps_on_the_class_token_alone_are_no_map():
    """As in CaiT: layers and sums of the class token, which is in no cell of the map."""

    class ClassBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit, self.mix, self.fc = vit(), nn.Linear(16, 16), nn.Linear(16, 5)

        def tokens(self, x):
            patches = self.vit._process_input(x)
            return self.vit.encoder(torch.cat([self.vit.class_token.expand(x.shape[0], -1, -1), patches], 1))

        def forward(self, x):
            token = self.tokens(x)[:, 0]
            return self.fc(token + self.mix(token).relu())

    legacy, batch = ClassBlock().eval(), images(32)
    net = convert(legacy, head="direct", input_size=32, seed=0)
    maps = net.forward_features(batch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(maps, legacy.tokens(batch)[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("size", [32, (32, 48)])
@torch.no_grad()
def test_class_and_register_tokens_are_no_patches(prefix, size):
    legacy, batch = Tokens(prefix, reads_token=False).eval(), images(size)
    net = convert(legacy, head="direct", input_size=size)
    rows, columns = batch.shape[2] // 8, batch.shape[3] // 8
    assert net.certificate.map_size == (rows, columns)
    torch.testing.assert_close(net(batch), legacy(batch), rtol=1e-4, atol=1e-5)
    patches = legacy.tokens(batch)[:, prefix:]
    torch.testing.assert_close(net.forward_features(batch)[:, :, 1, 2], patches[:, columns + 2], rtol=1e-4, atol=1e-5)
    assert net.certificate.legacy_error < 1e-4


@torch.no_grad()
def test_a_head_on_the_class_token_is_told_from_one_on_the_patches():
    assert inspect(Tokens(1, reads_token=True), input_size=32).verdict == "convertible"
    assert inspect(Tokens(1, reads_token=False), input_size=32).verdict == "native"
    net = convert(Tokens(1, reads_token=True).eval(), head="direct", input_size=32, seed=0)
    assert net.certificate.legacy_error is None, "a new classifier"


@torch.no_grad()
def test_channels_last_maps():
    legacy, batch = ChannelsLast().eval(), images((40, 32))
    net = convert(legacy, head="direct", input_size=(40, 32))
    assert inspect(legacy, input_size=(40, 32)).verdict == "native"
    torch.testing.assert_close(net.forward_features(batch), legacy.maps(batch).permute(0, 3, 1, 2))
    torch.testing.assert_close(net(batch), legacy(batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(net.classifier.weight, legacy.fc.weight)


@torch.no_grad()
def test_a_norm_behind_the_pooling_of_channels_last_is_moved():
    legacy, batch = ChannelsLast(norm=True).eval(), images((40, 32))
    net = convert(legacy, head="recast", input_size=(40, 32))
    expected = legacy.fc(legacy.norm(legacy.maps(batch))).mean((1, 2))
    torch.testing.assert_close(net(batch), expected, rtol=1e-4, atol=1e-5)
    assert net.certificate.legacy_error > 1e-3


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("suffix", [0, 1])
@pytest.mark.parametrize("axes", [*MAP_AXES, *TOKEN_AXES])
def test_there_and_back(axes, prefix, suffix):
    """Every number, one by one."""
    layout = Layout(axes, (2, 3), *((0, 0) if axes in MAP_AXES else (prefix, suffix)))
    maps = torch.randn(5, 4, 2, 3)
    sizes = {"N": 5, "C": 4, "H": 2, "W": 3, "(HW)": layout.prefix + 6 + layout.suffix}
    sizes["(WH)"] = sizes["(HW)"]
    names = re.findall(r"\(\w+\)|\w", axes)
    value = torch.randn([sizes[name] for name in names])
    for n, c, y, x in itertools.product(*map(range, maps.shape)):
        place = {"N": n, "C": c, "H": y, "W": x}
        place |= {"(HW)": layout.prefix + 3 * y + x, "(WH)": layout.prefix + 2 * x + y}
        value[tuple(place[name] for name in names)] = maps[n, c, y, x]
    assert torch.equal(layout.to_map(value), maps)
    assert torch.equal(layout.from_map(maps, like=value), value)
    alone = layout.from_map(maps)
    assert torch.equal(layout.to_map(alone), maps)
    if layout.prefix:
        torch.testing.assert_close(alone.select(layout.token_axis, 0), maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("shape", "known", "expected"),
    [
        ((2, 64, 7, 7), [], Layout("NCHW", (7, 7))),
        ((2, 7, 7, 64), [], Layout("NHWC", (7, 7))),
        ((2, 64, 1, 1), [], None),
        ((2, 197, 192), [(14, 14)], Layout("N(HW)C", (14, 14), 1)),
        ((2, 198, 192), [(14, 14)], Layout("N(HW)C", (14, 14), 2)),
        ((2, 16, 256), [(14, 14)], Layout("N(HW)C", (4, 4))),  # LeViT: the tokens become fewer
        ((2, 512, 49), [(7, 7)], Layout("NC(HW)", (7, 7))),  # a flattened map
        ((2, 512, 64), [(7, 7)], None),  # 512 cells of no square
        ((2, 10), [], None),
    ],
)
def test_layouts_of_shapes(shape, known, expected):
    guesses = guess_layouts(shape, (224, 224), known)
    assert (guesses[0] if guesses else None) == expected
