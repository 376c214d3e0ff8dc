"""Networks that torch.fx cannot trace: what it cannot enter is kept whole, or the network is stopped at its map."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camify
from camify import CAMNet, ConversionError, convert, inspect
from camify.errors import CheckpointError


def images(size=16, count=3, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Gate(nn.Module):
    """Control flow on values, inside a part."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else -self.conv(x)


class Part(nn.Module):
    """The part stands in the middle, so torch.fx has the rest."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gate, self.last = nn.Conv2d(3, 8, 3), Gate(), nn.Linear(8, 5)

    def forward(self, x):
        return self.last(F.relu(self.gate(self.stem(x))).mean((2, 3)))


class Branch(nn.Module):
    """Control flow on values in the outermost forward, one shared activation, a hidden head."""

    def __init__(self, hidden=False):
        super().__init__()
        torch.manual_seed(0)
        self.act = nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, stride=2)
        self.hidden, self.last = nn.Linear(12, 12) if hidden else nn.Identity(), nn.Linear(12, 5)
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())

    def forward(self, x):
        x = self.act(self.first(x))
        if x.max() > 1e6:
            x = x / 2
        x = self.act(self.second(x))
        return self.last(F.relu(self.hidden(self.block(x).mean((2, 3)))))


class Noisy(nn.Module):
    """Other steps in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x)
        return self.last(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("head", ["gap", "direct", "recast"])
@torch.no_grad()
def test_what_cannot_be_entered_is_kept_whole(head):
    legacy = Part().eval()
    before = copy.deepcopy(legacy.state_dict())
    net = convert(legacy, head=head, input_size=16, head_channels=4 if head == "gap" else None)
    assert net.certificate.identity_error <= 1e-4
    assert any(
        r"cannot enter gate (Gate at" in note and "test_untraceable.py" in note for note in net.certificate.notes
    )
    if head != "gap":
        for batch in (images(), images() - 3, images() + 3):
            torch.testing.assert_close(net.eval()(batch), legacy(batch), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())


@torch.no_grad()
def test_a_part_kept_whole_cannot_be_stored_without_code(tmp_path):
    net = convert(Part(), head="direct", input_size=16)
    with pytest.raises(ConversionError, match=r"layer gate: .*Gate cannot be stored without code"):
        net.save_pretrained(tmp_path / "net")


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_control_flow_in_the_outermost_forward(training):
    legacy = Branch().train(training)
    found = inspect(legacy, input_size=16)
    assert (found.verdict, found.feature_layer, found.map_size, found.num_classes) == (
        "convertible",
        "block",
        (6, 6),
        5,
    )
    legacy.hidden = nn.Identity()
    net = convert(legacy, head="direct", input_size=16, seed=0)
    assert net.training == training
    assert [m.training for m in net.features.modules()] == [training] * len(list(net.features.modules()))
    assert any(
        "cannot be traced" in n and "test_untraceable.py" in n and "cannot be saved" in n for n in net.certificate.notes
    )
    x = legacy.eval().act(legacy.first(images()))
    expected = legacy.block(legacy.act(legacy.second(x)))
    torch.testing.assert_close(net.eval().forward_features(images()), expected)
    assert not [name for name, _ in net.named_parameters() if "last" in name], "the head is gone"


@torch.no_grad()
def test_a_linear_head_behind_control_flow_is_kept():
    class Native(Branch):
        def forward(self, x):
            x = self.act(self.first(x))
            if x.max() > 1e6:
                x = x / 2
            return self.last(self.block(self.act(self.second(x))).mean((2, 3)))

    legacy = Native().eval()
    assert inspect(legacy, input_size=16).verdict == "native"
    for head in ("direct", "recast"):
        net = convert(legacy, head=head, input_size=16)
        torch.testing.assert_close(net(images()), legacy(images()), rtol=1e-4, atol=1e-5)
        assert torch.equal(net.classifier.weight, legacy.last.weight)


def test_it_learns_and_keeps_the_users_network():
    legacy = Branch(hidden=True)
    before, modules = copy.deepcopy(legacy.state_dict()), dict(legacy.named_modules())
    net = convert(legacy, head="gap", input_size=16, head_channels=6, num_classes=3, seed=0)
    net(images()).square().sum().backward()
    first = next(m for m in net.features.modules() if isinstance(m, nn.Conv2d))
    assert float(first.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in legacy.parameters())
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())
    assert dict(legacy.named_modules()) == modules
    assert all("forward" not in vars(module) for module in legacy.modules())
    copied = copy.deepcopy(net).eval()
    torch.testing.assert_close(copied(images()), net.eval()(images()))


@torch.no_grad()
def test_other_steps_in_training_stay():
    legacy = Noisy()
    net = convert(legacy, head="direct", input_size=16)
    torch.testing.assert_close(net.eval()(images()), legacy.eval()(images()), rtol=1e-4, atol=1e-5)
    net.train()
    assert not torch.equal(net(images()), net(images())), "its noise is there while training"
    assert any("other steps in training" in note for note in net.certificate.notes)


def test_what_cannot_be_had_says_why(tmp_path):
    net = convert(Branch(), head="direct", input_size=16)
    with pytest.raises(ConversionError, match=r"cannot be traced|cannot be stored without code"):
        net.save_pretrained(tmp_path / "net")
    with pytest.raises(ConversionError, match=r"recast.*torch\.fx cannot trace"):
        convert(Branch(hidden=True), head="recast", input_size=16)
    with pytest.raises(ConversionError, match=r"map_stride.*cannot trace"):
        convert(Branch(), head="direct", input_size=16, map_stride=1)


def test_no_module_with_a_map_is_refused_with_the_line():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Linear(8, 5)

        def forward(self, x):
            x = F.conv2d(x, self.weight)
            if x.mean() > 0:
                x = -x
            return self.last(x.mean((2, 3)))

    with pytest.raises(ConversionError, match=r"test_untraceable\.py:\d+.*Nor does any module give a map"):
        convert(Bare(), input_size=16)


class Output(OrderedDict):
    """As transformers' ModelOutput: attributes beside keys."""

    def __getattr__(self, name):
        return self[name]


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(3, 16, 8, 8)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("channels")
        return self.projection(x).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """As transformers' ViTModel: torch.fx enters neither it nor its answer."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.token = Embeddings(), nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0) for _ in range(2)
        )
        self.layernorm = nn.LayerNorm(16)

    def forward(self, pixel_values, output_attentions=None):
        x = self.embeddings(pixel_values)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x * 1 if self.training and output_attentions else x)
        return Output(last_hidden_state=self.layernorm(x))


class WrappedViT(nn.Module):
    """A Hugging Face ViT in a module that returns its logits alone."""

    def __init__(self):
        super().__init__()
        self.vit, self.classifier = Encoder(), nn.Linear(16, 4)

    def forward(self, x):
        return self.classifier(self.vit(x).last_hidden_state[:, 0, :])


def test_a_map_inside_a_module_that_torch_fx_cannot_enter_is_watched():
    torch.manual_seed(0)
    model = WrappedViT().eval()
    images = torch.randn(2, 3, 32, 32)
    inspection = camify.inspect(model, input_size=32)
    assert (inspection.feature_layer, inspection.map_size) == ("vit.layernorm", (4, 4))
    net = camify.convert(model, head="direct", input_size=32, seed=0).eval()
    tokens = model.vit(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(net.forward_features(images), tokens.transpose(1, 2).unflatten(2, (4, 4)))


def test_grad_cam_of_a_class_token_reads_patches_where_they_still_count():
    """The last norm's patches reach no logit; those before the last block do, through its attention."""
    torch.manual_seed(0)
    model = WrappedViT().eval()
    images, seen = torch.randn(2, 3, 32, 32), []

    def keep(_module, _args, output):
        seen.append(output.clone())
        return seen[-1].clone()

    handle = model.vit.layers[0].register_forward_hook(keep)
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), seen[0])
    handle.remove()
    expected = (seen[0][:, 1:] * gradient[:, 1:].mean(1)[:, None]).sum(2).reshape(2, 4, 4).detach()
    torch.testing.assert_close(camify.methods.GradCAM(model)(images, 2), expected, rtol=1e-4, atol=1e-6)


class OwnHead(nn.Module):
    """Convolutions, and a head whose code torch.fx cannot follow."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))
        self.fc, self.way = nn.Linear(8 * 8 * 8, 5), way

    def forward(self, x):
        x = self.features(x)
        if self.way == "len":
            return self.fc(x.view(len(x), -1))
        if self.way == "assert":
            assert x.abs().max() < 1e6, "values explode"
        if self.way == "raise" and not x.isfinite().all():
            raise ValueError("NaN")
        if self.way == "if":
            x = x if x.mean() > -1e6 else x * 0
        if self.way == "loop":
            for _ in range(int(x.shape[0])):
                pass
        if self.way == "item":
            x = x * float(x.new_ones(1).item())
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("way", ["len", "assert", "raise", "if", "loop", "item"])
@pytest.mark.parametrize("head", ["direct", "gap"])
def test_what_is_cut_off_does_not_decide_whether_the_rest_can_be_stored(way, head, tmp_path):
    legacy = OwnHead(way).eval()
    net = convert(legacy, head=head, input_size=32, seed=0, head_channels=4 if head == "gap" else None).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loaded = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images))
        if head == "direct":
            torch.testing.assert_close(net.forward_features(images), legacy.features(images), rtol=1e-4, atol=1e-5)


def test_a_folder_that_does_not_give_the_network_back_gets_no_name(tmp_path):
    net = convert(OwnHead("none").eval(), head="direct", input_size=32, seed=0)
    folder = net.save_pretrained(tmp_path / "net")
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        net.classifier.weight.add_(1)
    net.features.register_forward_hook(lambda module, args, output: output * 2)  # what no file holds
    with pytest.raises(CheckpointError, match="does not give the network back"):
        net.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
