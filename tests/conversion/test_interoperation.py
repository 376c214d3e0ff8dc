"""Other libraries' map methods work on converted networks as they are, and give the class map."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify.conversion import convert

CLASSES, SIZE = [0, 3, 2], 64


class Fully(nn.Sequential):
    """The plain legacy network: convolutions, max-pools, flatten, two linear layers."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(8 * 16 * 16, 16), nn.ReLU(), nn.Linear(16, 5)),
        )


class Residual(nn.Module):
    """A skip connection, pooled before one linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(F.relu(x + self.norm(self.conv(F.relu(x)))).mean((2, 3)))


def converted(legacy, head):
    """The network and images; a recast fully connected head has several cells only on larger ones."""
    net = convert(
        legacy().eval(), head=head, input_size=SIZE, seed=0, **({"head_channels": 6} if head == "gap" else {})
    )
    size = 2 * SIZE if head == "recast" else SIZE
    return net.eval(), torch.randn(3, 3, size, size)


def own_maps(net, images):
    """The raw class maps (3, h, w)."""
    with torch.no_grad():
        maps = net.forward_with_maps(images)[1][torch.arange(3), torch.tensor(CLASSES)]
    assert maps[0].numel() > 1
    return maps


def scaled_twice(maps, size):
    """That library's normalization: to [0, 1] map by map, enlarged bilinearly, to [0, 1] again."""

    def unit(maps):
        maps = maps - maps.min((1, 2), keepdims=True)
        return maps / (1e-7 + maps.max((1, 2), keepdims=True))

    large = F.interpolate(torch.from_numpy(unit(maps))[:, None], size, mode="bilinear", align_corners=False)
    return unit(large[:, 0].numpy())


networks = pytest.mark.parametrize("legacy", [Fully, Residual])
heads = pytest.mark.parametrize("head", ["gap", "direct", "recast"])


@networks
@heads
def test_torch_cam_gives_the_same_map(legacy, head):
    from torchcam.methods import CAM

    net, images = converted(legacy, head)
    with CAM(net, "features", "classifier", input_shape=tuple(images.shape[1:])) as extractor:
        logits = net(images)
        (theirs,) = extractor(CLASSES, logits, normalized=False)
    ours = own_maps(net, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert torch.allclose(copy.deepcopy(net)(images), logits)


@networks
@heads
def test_pytorch_grad_cam_gives_the_positive_part_of_the_map(legacy, head):
    """With GAP the gradient of a logit is weight / (h w) in every cell: Grad-CAM is ReLU(map) / (h w)."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, images = converted(legacy, head)
    positive = own_maps(net, images).clamp_min(0).numpy()
    targets = [ClassifierOutputTarget(index) for index in CLASSES]
    with GradCAM(model=net, target_layers=[net.features]) as method:
        theirs = method(input_tensor=images, targets=targets)
        recorded = method.activations_and_grads
        values, gradients = recorded.activations[0].numpy(), recorded.gradients[0].numpy()
        raw = method.get_cam_image(images, net.features, targets, values, gradients)
    cells = positive[0].size
    np.testing.assert_allclose(np.maximum(raw, 0), positive / cells, rtol=1e-4, atol=1e-5 * np.abs(raw).max())
    scaled = scaled_twice(positive / cells, images.shape[-2:])
    assert theirs.max() > 0.9
    np.testing.assert_allclose(theirs, scaled, atol=1e-3)
