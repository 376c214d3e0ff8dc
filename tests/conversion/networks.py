"""Networks that are converted, and what is asked of every result."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from camify.model import CAMNet

MODELS = torchvision.models
VGGS = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]


def real(name: str, num_classes: int = 1000) -> nn.Module:
    """A torchvision network with all its parameters, drawn quickly (Kaiming draws of 100 M numbers take seconds)."""
    with torch.device("meta"):
        options = {"init_weights": False} if name.startswith("vgg") else {}
        network = getattr(MODELS, name)(num_classes=num_classes, **options)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            bound = (6 / fan_in) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.uniform_(-bound, bound, generator=generator)
    shake(network)
    return network.eval()


def shake(network: nn.Module) -> nn.Module:
    """Batch norms that do something: a fresh one is the identity in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def narrow_vgg(name: str, num_classes: int = 5) -> nn.Module:
    """torchvision's VGG layer for layer with an eighth of its channels (64 in the end), and a head of the same form."""
    with torch.device("meta"):
        published = getattr(MODELS, name)(init_weights=False)
    widths: list[str | int] = []
    for layer in published.features:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            widths.append(layer.out_channels // 8 if isinstance(layer, nn.Conv2d) else "M")
    published.features = MODELS.vgg.make_layers(widths, batch_norm=name.endswith("_bn"))
    published.classifier = nn.Sequential(
        nn.Linear(64 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(),
        nn.Linear(16, num_classes),
    )  # fmt: skip
    return shake(published).eval()


def same_tensors(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = list(ours.state_dict().values()), list(theirs.state_dict().values())
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def chain(blocks: int = 2, classes: int = 5, size: int = 64, channels: int = 3) -> nn.Sequential:
    """Convolutions, max-pools, flatten, two linear layers: the plain legacy network."""
    layers: list[nn.Module] = []
    width = 8
    for block in range(blocks):
        layers += [nn.Conv2d(channels if block == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    side = size // 2**blocks
    layers += [nn.Flatten(), nn.Linear(width * side * side, 16), nn.ReLU(), nn.Linear(16, classes)]
    return shake(nn.Sequential(*layers)).eval()


def loops(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Zhou et al. 2016, eq. 2, written out: M_k(x, y) = sum_c w_kc f_c(x, y)."""
    images, channels, height, width = features.shape
    maps = torch.zeros(images, len(weight), height, width, dtype=torch.float64)
    for n in range(images):
        for k in range(len(weight)):
            for y in range(height):
                for x in range(width):
                    value = 0.0
                    for c in range(channels):
                        value += float(weight[k, c]) * float(features[n, c, y, x])
                    maps[n, k, y, x] = value
    return maps


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def check_identity(net: CAMNet, images: torch.Tensor) -> None:
    net.eval()
    with torch.no_grad():
        logits, maps = net.forward_with_maps(images)
        assert torch.equal(logits, net(images))
        expected = torch.einsum("nchw,kc->nkhw", net.features(images).double(), net.classifier.weight.double())
    assert relative(maps.double(), expected) < 1e-5
    bias = net.classifier.bias.double()
    assert relative(expected.mean((2, 3)) + bias, logits.double()) < 1e-4


class FunctionalNet(nn.Module):
    """relu, pool and flatten as functions; the batch size is read at the top."""

    def __init__(self, flatten="view", size=(64, 64)):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.hidden = nn.Linear(12 * (size[0] // 4) * (size[1] // 4), 16)
        self.last = nn.Linear(16, 5)
        self.flatten = flatten

    def maps(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        return F.relu(self.two(x))

    def forward(self, x):
        batch = x.shape[0]
        y = F.max_pool2d(self.maps(x), kernel_size=2, stride=2)
        if self.flatten == "view":
            y = y.view(batch, -1)
        elif self.flatten == "size":
            y = y.view(y.size(0), -1)
        elif self.flatten == "reshape":
            y = y.reshape(x.shape[0], y.shape[1] * y.shape[2] * y.shape[3])
        else:
            y = torch.flatten(y, 1)
        return self.last(F.relu(self.hidden(y)))


class MnistNet(nn.Module):
    """The network of PyTorch's MNIST example: pool before ReLU, dropout of both kinds, log-softmax."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = x.view(-1, 320)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, training=self.training)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


class DropoutNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.dropout(x, 0.3, training=self.training)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        return self.last(F.dropout(x.flatten(1), p=0.5, training=self.training))


class Nested(nn.Module):
    """Blocks in blocks, a skip connection, and a head in a block of its own."""

    class Block(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after))
            self.skip = nn.Conv2d(before, after, 1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.conv(x) + self.skip(x))

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"stem": self.Block(3, 8), "stage": self.Block(8, 12)})
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16 * 16, 8), nn.Tanh(), nn.Linear(8, 4))

    def maps(self, x):
        return self.body["stage"](self.pool(self.body["stem"](x)))

    def forward(self, x):
        return self.head(self.pool(self.maps(x)))


class Discarded(nn.Module):
    """An in-place ReLU whose result nobody takes: the classic line ``self.relu(x)``."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.relu, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Linear(2048, 5),
        )
        self.how = how

    def forward(self, x):
        x = self.conv(x)
        if self.how == "layer":
            self.relu(x)
        elif self.how == "method":
            x.relu_()
        else:
            F.relu(x, inplace=True)
        return self.last(F.max_pool2d(x, 2).flatten(1))


class FiveChannels(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))


def body() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]


def heads() -> dict[str, list[nn.Module]]:
    gap = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return {
        "batch norm": [*gap, nn.BatchNorm1d(8), nn.Linear(8, 5)],
        "two linear": [*gap, nn.Linear(8, 6), nn.Linear(6, 5)],
        "all of it": [*gap, nn.Linear(8, 6), nn.Dropout(0.4), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)],
        "conv first": [nn.Conv2d(8, 6, 1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(6, 5)],
    }


class Returns(nn.Module):
    """A network whose output is wrapped in something."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))
