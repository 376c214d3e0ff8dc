"""What a conversion costs, in ratios measured side by side: ``python tests/benchmarks/conversion_cost.py [NAME ...]``.

For each network of torchvision (random weights, 224 px, 1000 classes; default: vgg16, alexnet, resnet18, mobilenet_v2):

- ``convert / forward``: a whole conversion over one forward of its two probe images plus one copy of its weights; at
  most 2 for VGG16.
- ``new / old``: the converted network's forward over the legacy's, one image.
- ``with maps``: ``forward_with_maps`` over ``forward``, one image; at most 1.05.

Each figure is the median of the ratios of neighboring runs, so that a busy machine moves both sides alike.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import torch
import torchvision

from camify import convert

ROUNDS = 7
HEADS = {"vgg16": "gap", "alexnet": "gap"}  # the others keep their classifier


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(ours, theirs, rounds=ROUNDS):
    """The median of the ratios of neighboring runs."""
    ours(), theirs()
    return statistics.median(seconds(ours) / seconds(theirs) for _ in range(rounds))


@torch.no_grad()
def measure(name):
    torch.manual_seed(0)
    legacy = torchvision.models.get_model(name, weights=None).eval()
    probe, image = torch.randn(2, 3, 224, 224), torch.randn(1, 3, 224, 224)
    head = HEADS.get(name, "direct")

    def one_forward_and_a_copy():
        legacy(probe)
        copy.deepcopy(legacy)

    conversion = ratio(lambda: convert(legacy, head=head, seed=0), one_forward_and_a_copy, rounds=5)
    net = convert(legacy, head=head, seed=0)
    forward = ratio(lambda: net(image), lambda: legacy(image))
    maps = ratio(lambda: net.forward_with_maps(image), lambda: net(image), rounds=4 * ROUNDS)
    print(f"{name:16}{head:8}{conversion:>18.2f}{forward:>12.2f}{maps:>12.3f}", flush=True)


if __name__ == "__main__":
    print(f"{'network':16}{'head':8}{'convert / forward':>18}{'new / old':>12}{'with maps':>12}")
    for network in sys.argv[1:] or ("vgg16", "alexnet", "resnet18", "mobilenet_v2"):
        measure(network)
