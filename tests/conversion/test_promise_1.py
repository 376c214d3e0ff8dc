"""Converting never changes the user's model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify.conversion import convert, inspect
from camify.errors import ConversionError
from tests.conversion.networks import (
    MODELS,
    DropoutNet,
    FunctionalNet,
    Nested,
    chain,
)


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All that a conversion could change: values, addresses, modes, flags, gradients, hooks, attributes."""
    return {
        "values": {
            name: (hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest(), tensor.data_ptr())
            for name, tensor in model.state_dict().items()
        },
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.sum().item()) for n, p in model.named_parameters()
        },
        "hooks": [
            (name, key, list(hooks.items()))
            for name, module in model.named_modules()
            for key, hooks in vars(module).items()
            if key.endswith("_hooks") and isinstance(hooks, dict)
        ],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "layers": [(name, id(module)) for name, module in model.named_modules()],
    }


def lived_in(model: nn.Module) -> list[str]:
    """Mixed modes, frozen parts, gradients and hooks, as a model in use has them."""
    calls: list[str] = []
    model.train()
    modules = [module for module in model.modules() if not list(module.children())]
    for module in modules[::2]:
        module.eval()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_forward_pre_hook(lambda *_: calls.append("pre"))
        module.register_full_backward_hook(lambda *_: None)
    return calls


def users_models() -> list[nn.Module]:
    return [chain(), FunctionalNet(), DropoutNet(), Nested(), MODELS.resnet18(num_classes=4)]


@pytest.mark.parametrize("index", range(5))
def test_converting_never_changes_the_users_model(index):
    model = users_models()[index]
    calls = lived_in(model)
    before = fingerprint(model)
    for head in ("gap", "direct"):
        net = convert(model, head=head, input_size=64, head_channels=6)
        assert fingerprint(model) == before
    inspect(model, input_size=64)
    assert fingerprint(model) == before
    assert calls == []
    # and what is trained afterwards is not the user's
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert fingerprint(model) == before


def test_a_refused_model_is_left_as_it_was():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Linear(8, 5)

        def forward(self, x):
            x = F.conv2d(x, self.weight)
            return self.last(x.mean((2, 3))) if x.sum() > 0 else self.last(x.amax((2, 3)))

    model = Bare()
    lived_in(model)
    before = fingerprint(model)
    with pytest.raises(ConversionError):
        convert(model, input_size=64)
    assert fingerprint(model) == before
    small = MODELS.resnet18(num_classes=4)
    lived_in(small)
    before = fingerprint(small)
    with pytest.raises(ConversionError):
        convert(small, input_size=16)
    assert fingerprint(small) == before


def test_kept_layers_keep_their_modes_and_flags_and_lose_hooks_and_gradients():
    model = chain()
    calls = lived_in(model)
    net = convert(model, input_size=64, head_channels=6)
    kept = [(ours, theirs) for ours, theirs in zip(net.features, model, strict=False) if ours is not theirs][:7]
    for ours, theirs in kept:
        assert type(ours) is type(theirs)
        assert ours.training == theirs.training
        assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
        assert all(p.grad is None for p in ours.parameters())
    assert all(p.requires_grad for n, p in net.named_parameters() if n.startswith(("features.cam", "classifier")))
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert calls == []
    assert all(not m._forward_hooks and not m._backward_hooks for m in net.modules())


def test_hooks_that_cannot_be_copied_or_traced_do_no_harm():
    class Recorder:
        def __init__(self):
            self.file = Path(__file__).open()  # noqa: SIM115 - a file cannot be copied
            self.means = []

        def hook(self, module, inputs, output):
            self.means.append(float(output.detach().mean()))

    model = Nested().eval()
    recorder = Recorder()
    for module in (model.body["stem"], model.body["stem"].act, model.head[1]):
        module.register_forward_hook(recorder.hook)
    net = convert(model, input_size=64, head_channels=6)
    assert recorder.means == []
    net(torch.randn(1, 3, 64, 64))
    assert recorder.means == []
    model(torch.randn(1, 3, 64, 64))
    assert len(recorder.means) == 3
    recorder.file.close()
