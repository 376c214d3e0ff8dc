"""Steps noted while a network runs: any number of images, what is kept and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camify
from camify.checkpoint.architecture import describe
from camify.graphs.recorded import RecordingError, record
from camify.graphs.tracer import trace

SIZE = 8


class Checked(nn.Module):
    """Compares shapes, reads the number of images, and works in place: torch.fx stops at its first line."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.conv, self.fc = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 3)
        self.register_buffer("scale", torch.rand(5), persistent=False)

    def forward(self, x):
        if x.shape[1] != 3 or not isinstance(x, torch.Tensor):
            raise ValueError("give three channels")
        count = x.shape[0]
        patches = self.conv(x).flatten(2).transpose(1, 2).contiguous()
        tokens = torch.cat((self.token.expand(count, -1, -1), patches), 1)
        heads = tokens.view(count, 5, 2, 3).permute(2, 0, 1, 3).reshape(2 * count, 5, 3)
        first, second = heads.split([2, 1], -1)
        grid = torch.arange(5, dtype=torch.float32)
        mask = (grid[:, None] > grid[None]).float().masked_fill(grid[None] == 2, 0.5)
        heads = torch.cat((second, first), -1).reshape(2, count, 5, 3)
        mixed = (mask.unsqueeze(0).expand(count, -1, -1) @ heads[0]) * self.scale[None, :, None]
        mixed += 1
        return {"logits": self.fc(F.dropout(torch.cat((mixed, heads[1]), -1), 0.5, self.training)[:, 0]), "other": mask}


@pytest.fixture(scope="module")
def checked():
    torch.manual_seed(0)
    return Checked().eval()


def test_steps_give_the_same_logits_for_any_number_of_images(checked):
    steps = record(checked, (3, SIZE, SIZE), lambda output: output["logits"])
    for count in (1, 2, 5):
        images = torch.randn(count, 3, SIZE, SIZE)
        torch.testing.assert_close(steps(images), checked(images)["logits"])
    describe(steps)  # holds nothing but what can be stored
    assert not any("forward" in vars(module) for module in checked.modules())  # left as it was


def test_parameters_are_the_networks_own_and_dropout_works_in_training(checked):
    steps = record(checked, (3, SIZE, SIZE), lambda output: output["logits"])
    assert steps.token is checked.token
    assert [type(layer) for layer in steps.modules()].count(nn.Dropout) == 1
    images = torch.randn(2, 3, SIZE, SIZE)
    steps.train()
    assert not torch.equal(steps(images), steps(images))


class Refused(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.fc, self.kind = nn.Linear(3 * SIZE * SIZE, 2), kind

    def forward(self, x):
        x = x.flatten(1)
        if self.kind == "writes":
            x = x.clone()
            x[:, 0] = 1
        if self.kind == "count" and len(x) == 2:
            x = x * 2
        if self.kind == "noise":
            x = x + torch.zeros(len(x), 1)
        if self.kind == "divided":
            x = x * (1 / len(x))
        return self.fc(x) if self.kind != "constant" else self.fc.weight


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("writes", "writes into a tensor"),
        ("count", "other steps for another number of images"),
        ("noise", "size of the batch"),
        ("divided", "other arguments for another number"),
        ("constant", "no tensor that was made of the images"),
    ],
)
def test_what_cannot_be_noted_is_refused(kind, message):
    with pytest.raises(RecordingError, match=message):
        record(Refused(kind).eval(), (3, SIZE, SIZE))


def test_errors_of_steps_are_not_printed(checked, capfd):
    steps = record(checked, (3, SIZE, SIZE), lambda output: output["logits"])
    with pytest.raises(RuntimeError):
        steps(torch.randn(1, 3, 2 * SIZE, SIZE))
    assert capfd.readouterr() == ("", "")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("channels")
        return self.conv(x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.relu = Inner(), nn.ReLU()

    def forward(self, x):
        return self.relu(self.inner(x))


def test_a_module_kept_whole_leaves_those_around_it_entered():
    network = nn.Sequential(Outer(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    traced = trace(network, training=False)
    assert [text.split(" ")[0] for text in traced.kept_whole] == ["0.inner"]
    assert traced.ends["0"].target == "0.relu"
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(traced.network(images), network(images))
    assert camify.inspect(network, input_size=SIZE).verdict == "native"
