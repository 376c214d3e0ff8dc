"""head="recast": the old head at every position, compared with the old head itself, window by window."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from camify import CAMNet, ConversionError, convert, inspect
from tests.conversion.networks import narrow_vgg, real


def images(size, channels=3, count=2, seed=1):
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(network):
    """Weights of a size that keeps every layer's effect visible."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def features():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip


class Legacy(nn.Module):
    """Convolutions, an optional pool, flatten, the given head."""

    def __init__(self, head, pool=None):
        super().__init__()
        self.features, self.pool, self.head = features(), pool or nn.Identity(), head
        seeded(self)

    def forward(self, x):
        return self.head(self.pool(self.features(x)).flatten(1))


HEADS = {
    "one layer": lambda d: [nn.Linear(d, 5)],
    "two layers": lambda d: [nn.Dropout(), nn.Linear(d, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 5)],
    "no bias": lambda d: [nn.Linear(d, 16, bias=False), nn.Tanh(), nn.Linear(16, 5, bias=False)],
    "batch norm": lambda d: [nn.Linear(d, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 5)],
    "layer norm": lambda d: [nn.Linear(d, 16), nn.LayerNorm(16), nn.Hardswish(), nn.Linear(16, 5)],
    "four layers": lambda d: [
        nn.Linear(d, 16), nn.ELU(), nn.Linear(16, 12), nn.SiLU(), nn.Linear(12, 8), nn.PReLU(), nn.Linear(8, 5),
    ],
    "activation last": lambda d: [nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU()],
}  # fmt: skip


@pytest.mark.parametrize("size", [16, 20, (16, 24)])
@pytest.mark.parametrize("name", HEADS)
def test_logits_are_the_legacys_at_the_native_size(name, size):
    height, width = (size, size) if isinstance(size, int) else size
    legacy = Legacy(nn.Sequential(*HEADS[name](12 * (height // 4) * (width // 4))))
    net = convert(legacy, head="recast", input_size=size)
    x = images(size)
    torch.testing.assert_close(net(x), legacy(x), rtol=1e-4, atol=1e-5)
    assert net.certificate.legacy_error < 1e-5
    assert net.certificate.identity_error < 1e-5
    assert sum(p.numel() for p in net.parameters()) >= sum(p.numel() for p in legacy.parameters())


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("one layer", "activation last")])
def test_larger_images_are_evaluated_densely(name):
    """Simonyan & Zisserman 2014, 3.2: every window of the native size gives the legacy head's logits."""
    legacy = Legacy(nn.Sequential(*HEADS[name](12 * 16)))
    net = convert(legacy, head="recast", input_size=16)
    x = images(32)
    logits, maps = net.forward_with_maps(x)
    with torch.no_grad():
        grid = legacy.features(x)
        windows = [[legacy.head(grid[:, :, i : i + 4, j : j + 4].flatten(1)) for j in range(5)] for i in range(5)]
    expected = torch.stack([torch.stack(row, -1) for row in windows], -2)
    bias = 0 if net.classifier.bias is None else net.classifier.bias[:, None, None]
    torch.testing.assert_close(maps + bias, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, 12, 32, (20, 36)])
def test_an_adaptive_pool_is_folded_into_the_kernel(size):
    legacy = Legacy(nn.Sequential(nn.Linear(12 * 9, 16), nn.ReLU(), nn.Linear(16, 5)), nn.AdaptiveAvgPool2d(3))
    net = convert(legacy, head="recast", input_size=size)
    torch.testing.assert_close(net(images(size)), legacy(images(size)), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in net.features.modules())


def test_batch_norms_right_behind_a_flatten_become_part_of_the_first_layer():
    """Keras's idiom: a deviation per feature and cell, which has no per-position form of its own."""
    wide, narrow = 12 * 16, nn.Linear(16, 5, bias=False)
    legacy = Legacy(
        nn.Sequential(
            nn.BatchNorm1d(wide), nn.Dropout(), nn.BatchNorm1d(wide), nn.Linear(wide, 16, bias=False), nn.ReLU(), narrow
        )
    )
    net = convert(legacy, head="recast", input_size=16)
    torch.testing.assert_close(net(images(16)), legacy(images(16)), rtol=1e-4, atol=1e-5)
    only = Legacy(nn.Sequential(nn.BatchNorm1d(wide), nn.Linear(wide, 5)))
    torch.testing.assert_close(convert(only, head="recast", input_size=16)(images(16)), only(images(16)))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (lambda d: [nn.LayerNorm(d), nn.Linear(d, 5)], "between a flatten and its linear layer"),
        (lambda d: [nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, 5)], "between a flatten and its linear layer"),
        (lambda d: [nn.BatchNorm1d(d)], "no linear layer follows"),
        (lambda d: [nn.ReLU()], "no linear layer follows"),
    ],
)
def test_flattened_features_without_a_per_position_form_are_refused(layers, words):
    with pytest.raises(ConversionError, match=words):
        convert(Legacy(nn.Sequential(*layers(12 * 16))), head="recast", input_size=16)


def test_a_later_max_pool_of_the_head_stays():
    legacy = Legacy(nn.Sequential(nn.Linear(12 * 4, 16), nn.ReLU(), nn.Linear(16, 5)), nn.MaxPool2d(2))
    net = convert(legacy, head="recast", input_size=16)
    torch.testing.assert_close(net(images(16)), legacy(images(16)), rtol=1e-4, atol=1e-5)


class Functional(nn.Module):
    """As in the classic examples: pools before activations, view, functional dropout, log-softmax at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
        seeded(self)

    def forward(self, x):
        count = x.size(0)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.view(count, 320)))
        return F.log_softmax(self.fc2(F.dropout(x, training=self.training)), dim=1)


def test_a_log_softmax_at_the_end_is_left_to_the_user():
    legacy = Functional()
    net = convert(legacy, head="recast", input_size=28)
    x = images(28, channels=1)
    torch.testing.assert_close(net(x).log_softmax(1), legacy(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
@pytest.mark.slow
def test_torchvisions_flattening_networks(name):
    legacy = real("alexnet") if name == "alexnet" else narrow_vgg(name)
    size = 224 if name == "alexnet" else 96  # at 96 px VGG's adaptive pool enlarges 3 x 3 to 7 x 7
    net = convert(legacy, head="recast", input_size=size)
    x = images(size)
    with torch.no_grad():
        expected, found = legacy(x), net.eval()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    if name == "alexnet":
        assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in legacy.parameters())
    assert torch.equal(net.classifier.weight, legacy.classifier[6].weight)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("mobilenet_v3_small", "classifier"),
        pytest.param("convnext_tiny", "classifier", marks=pytest.mark.slow),
    ],
)
def test_pooling_moves_behind_a_non_linearity(name, head):
    """The recast logits are the mean of the old head's answers to every position alone."""
    legacy = torchvision.models.get_model(name, weights=None).eval()
    net = convert(legacy, head="recast", input_size=96).eval()
    x = images(96)
    with torch.no_grad():
        grid = legacy.features(x)
        old = getattr(legacy, head)
        single = (lambda v: old(v)) if name == "convnext_tiny" else (lambda v: old(v.flatten(1)))
        answers = [single(grid[:, :, i : i + 1, j : j + 1]) for i in range(3) for j in range(3)]
        found = net(x)
    torch.testing.assert_close(found, torch.stack(answers).mean(0), rtol=1e-3, atol=1e-5)
    assert any("pooling comes last" in note for note in net.certificate.notes)
    assert net.certificate.legacy_error is not None


def test_squeezenets_relu_stays_in_the_map_and_is_exact():
    legacy = torchvision.models.squeezenet1_0(weights=None, num_classes=7).eval()
    net = convert(legacy, head="recast", input_size=96).eval()
    for size in (96, 128):
        with torch.no_grad():
            torch.testing.assert_close(net(images(size)), legacy(images(size)), rtol=1e-4, atol=1e-6)


def test_the_legacy_stays_and_nothing_is_drawn_at_random():
    legacy = Legacy(nn.Sequential(*HEADS["batch norm"](12 * 16))).train()
    legacy.head[1].eval()
    before, modes = copy.deepcopy(legacy.state_dict()), [m.training for m in legacy.modules()]
    state = torch.get_rng_state()
    net = convert(legacy, head="recast", input_size=16)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())
    assert modes == [m.training for m in legacy.modules()]
    twin = Legacy(nn.Sequential(*HEADS["batch norm"](192)))
    assert [name for name, _ in legacy.named_modules()] == [name for name, _ in twin.named_modules()]
    legacy.head[0].weight.data.zero_()
    assert float(net.features.state_dict()["head1.weight"].abs().max()) > 0


def test_a_recast_network_is_saved_and_loaded(tmp_path):
    net = convert(Legacy(nn.Sequential(*HEADS["layer norm"](12 * 16))), head="recast", input_size=16).eval()
    loaded = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    torch.testing.assert_close(loaded(images(24)), net(images(24)))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.fc1, self.fc2 = features(), nn.Linear(192, 8), nn.Linear(8, 5)
        seeded(self)

    def forward(self, x):
        return self.fc2(F.softmax(self.fc1(self.features(x).flatten(1)), 1) * 8)


@pytest.mark.parametrize(
    ("legacy", "words"),
    [
        (Normalised(), "head='recast'"),
        (Legacy(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), nn.AdaptiveMaxPool2d(1)), "mean"),
    ],
)
def test_what_has_no_per_position_form_is_refused(legacy, words):
    with pytest.raises(ConversionError, match=words):
        convert(legacy, head="recast", input_size=16)


class Pooled(nn.Module):
    """A function takes the map to a vector, which two linear layers follow."""

    def __init__(self, pool, after=lambda logits: logits, outputs=5):
        super().__init__()
        self.features, self.pool, self.after = features(), pool, after
        self.head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, outputs))
        seeded(self)

    def forward(self, x):
        return self.after(self.head(self.pool(self.features(x))))


OTHER_POOLS = {
    "amax": lambda x: x.amax((2, 3)),
    "logsumexp": lambda x: torch.logsumexp(x.flatten(2), -1),
    "std": lambda x: x.flatten(2).std(-1),
    "median": lambda x: x.flatten(2).median(-1).values,
    "mean of the five largest": lambda x: x.flatten(2).topk(5, -1).values.mean(-1),
    "maximum of the rows' means": lambda x: x.permute(0, 2, 3, 1).mean(2).amax(1),
    "mean of the rows' maxima": lambda x: x.amax(3).mean(2),
}


@pytest.mark.parametrize("name", OTHER_POOLS)
def test_every_pool_but_the_mean_is_refused_and_inspection_says_so(name):
    legacy = Pooled(OTHER_POOLS[name])
    with pytest.raises(ConversionError, match="in another way than by the mean"):
        convert(legacy, head="recast", input_size=16)
    assert "recast cannot keep it" in inspect(legacy, input_size=16).reason


MEANS = {
    "of both axes": lambda x: x.mean((2, 3)),
    "of the flattened": lambda x: x.flatten(2).mean(-1),
    "one axis after the other": lambda x: x.mean(3).mean(2),
    "in another order of axes": lambda x: x.permute(0, 2, 3, 1).mean(2).mean(1),
    "of transposed axes": lambda x: x.transpose(2, 3).relu().mean((2, 3)),
    "of cells that were moved around": lambda x: x.roll(1, 2).mean((2, 3)),
    "a sum, divided": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "a sum by einsum, divided": lambda x: torch.einsum("nchw->nc", x) / 16,
    "of one dimension": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1).squeeze(-1),
}


@pytest.mark.parametrize("name", MEANS)
@torch.no_grad()
def test_a_mean_moves_however_it_is_written(name):
    legacy, batch = Pooled(MEANS[name]), images(16)
    net = convert(legacy, head="recast", input_size=16).eval()
    cells = legacy.features(batch).permute(0, 2, 3, 1)
    expected = (legacy.head(cells) - legacy.head[-1].bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(net.forward_with_maps(batch)[1], expected, rtol=1e-4, atol=1e-4)
    assert "recast keeps it" in inspect(legacy, input_size=16).reason


def test_a_maximum_over_groups_of_outputs_is_no_linear_head():
    maxout = Pooled(MEANS["of both axes"], lambda values: values.view(-1, 5, 2).amax(-1), outputs=10)
    maxout.head = seeded(nn.Sequential(nn.Linear(12, 10)))
    with pytest.raises(ConversionError, match="no per-position form"):
        convert(maxout, head="recast", input_size=16)
    with torch.no_grad():
        assert convert(maxout, head="direct", input_size=16)(images(16)).shape == (2, 5)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: torch.einsum("nchw,ndhw->ncd", x, x).mean(2),
        lambda x: torch.baddbmm(torch.zeros(1, 12, 12), x.flatten(2), x.flatten(2).transpose(1, 2)).mean(2),
        lambda x: torch.einsum("nkp,ncp->nkc", x.flatten(2).softmax(1), x.flatten(2)).mean(1),
        lambda x: x.flatten(2).sort(-1).values[..., 0],
    ],
)
def test_heads_of_other_kinds_are_refused_and_never_crash(pool):
    with pytest.raises(ConversionError, match=r"head='recast'|mixes images|cannot run"):
        convert(Pooled(pool), head="recast", input_size=16)


def test_a_head_that_mixes_positions_is_refused():
    spectrum = Pooled(lambda x: torch.fft.rfft2(x).abs().mean((2, 3)))
    spectrum.head = seeded(nn.Sequential(nn.Linear(12, 5)))
    with pytest.raises(ConversionError, match=r"mixes positions.*times as much as others, before it"):
        convert(spectrum, head="recast", input_size=32)


@pytest.mark.parametrize(("options", "words"), [({"num_classes": 9}, "keeps the 5 classes"), ({"pool": "gmp"}, "pool")])
def test_options_that_contradict_it_are_refused(options, words):
    with pytest.raises(ConversionError, match=words):
        convert(Legacy(nn.Sequential(nn.Linear(192, 5))), head="recast", input_size=16, **options)


class Joined(nn.Module):
    """fastai's head: average and maximum joined, batch norm, two linear layers."""

    def __init__(self, swapped=False):
        super().__init__()
        self.features, self.swapped = features(), swapped
        self.head = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(24), nn.Dropout(0.25), nn.Linear(24, 10, bias=False), nn.ReLU(inplace=True),
            nn.BatchNorm1d(10), nn.Dropout(0.5), nn.Linear(10, 5, bias=False),
        )  # fmt: skip
        seeded(self)

    def forward(self, x):
        x = self.features(x)
        pools = [F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)]
        return self.head(torch.cat(pools[::-1] if self.swapped else pools, 1))


@pytest.mark.parametrize("swapped", [False, True])
@torch.no_grad()
def test_pools_joined_as_fastai_does_run_at_every_position(swapped, tmp_path):
    legacy, batch = Joined(swapped), images(16)
    net = convert(legacy, head="recast", input_size=16)
    logits, maps = net.forward_with_maps(batch)
    found = legacy.features(batch)
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            cell = found[:, :, row, column]
            expected = legacy.head(torch.cat([cell, cell], 1))
            torch.testing.assert_close(maps[:, :, row, column], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, maps.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert net.certificate.legacy_error > 0
    assert any("not by the mean alone" in note for note in net.certificate.notes)
    torch.testing.assert_close(CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))(batch), logits)


class FunctionalLinear(nn.Module):
    """Linear layers as functions of the network's own parameters, as some of timm's."""

    def __init__(self):
        super().__init__()
        self.features = features()
        self.weight, self.bias = nn.Parameter(torch.zeros(9, 192)), nn.Parameter(torch.zeros(9))
        self.last = nn.Parameter(torch.zeros(5, 9))
        seeded(self)

    def forward(self, x):
        x = F.relu(F.linear(self.features(x).flatten(1), self.weight, bias=self.bias))
        return F.linear(x, self.last)


@torch.no_grad()
def test_functional_linear_layers():
    legacy, batch = FunctionalLinear(), images(16)
    net = convert(legacy, head="recast", input_size=16)
    torch.testing.assert_close(net(batch), legacy(batch), rtol=1e-4, atol=1e-4)
    assert net.certificate.legacy_error < 1e-4
