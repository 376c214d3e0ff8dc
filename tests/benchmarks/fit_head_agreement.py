"""Agreement with the legacy of random, fitted, recast heads: ``python tests/benchmarks/fit_head_agreement.py``.

MobileNetV2 and SqueezeNet 1.0 with their ImageNet weights. Heads are fitted without labels to the 1000 logits on
``photos/train``; agreement is measured on ``photos/val`` and ``imagenet-samples``, which no fit sees.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import camify
from camify.preprocessing import Preprocessing, read_image

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2-coral-ptq-mirrored.pth",
    "squeezenet1_0": "squeezenet1_0-deepcompression.pth",
}
MEASURED = ("photos/val", "imagenet-samples")


def images(folder: str) -> list[Tensor]:
    """The photographs of a folder as inputs, in batches of 32."""
    prepare = Preprocessing().evaluation()
    paths = sorted((DATA / folder).rglob("*.jpg"))
    return list(torch.stack([prepare({"image": read_image(path)})["image"] for path in paths]).split(32))


@torch.no_grad()
def top1(network: nn.Module, batches: list[Tensor]) -> Tensor:
    """Classes (N,)."""
    network.eval()
    return torch.cat([network(batch).argmax(1) for batch in batches])


def network(name: str) -> nn.Module:
    """A torchvision network with its ImageNet weights."""
    made = getattr(torchvision.models, name)(weights=None)
    made.load_state_dict(torch.load(DATA / "weights" / WEIGHTS[name], weights_only=True))
    return made.eval()


def redrawn(legacy: nn.Module) -> nn.Module:
    """The network with a random classifier on its own features (1280 channels)."""
    other = copy.deepcopy(legacy)
    other.classifier[1].reset_parameters()
    return other.eval()


def truncated(legacy: nn.Module) -> nn.Module:
    """The network without its last convolution (320 channels), with a random classifier."""
    body = copy.deepcopy(legacy.features[:-1])
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 1000)).eval()


def main() -> None:
    """Print the table."""
    missing = [path for path in [*MEASURED, *(f"weights/{name}" for name in WEIGHTS.values())]
               if not (DATA / path).exists()]  # fmt: skip
    if missing:
        sys.exit(f"Skipped: {DATA} lacks {', '.join(missing)}.")
    torch.manual_seed(0)
    fitted, measured = images("photos/train"), {name: images(name) for name in MEASURED}

    def row(label: str, model: nn.Module, legacy: dict[str, Tensor]) -> None:
        shares = [float((top1(model, batches) == legacy[name]).float().mean()) for name, batches in measured.items()]
        print(f"{label:44}" + "".join(f"{share:24.3f}" for share in shares), flush=True)

    sizes = [f"{name} ({sum(map(len, batches))})" for name, batches in measured.items()]
    print(f"{'agreement in top-1 on':44}" + "".join(f"{size:>24}" for size in sizes), flush=True)
    for name in WEIGHTS:
        legacy = network(name)
        answers = {part: top1(legacy, batches) for part, batches in measured.items()}
        row(f"{name} recast", camify.convert(legacy, head="recast"), answers)
        if name != "mobilenet_v2":
            continue
        for label, cut, head in (
            ("direct, 1280 channels", redrawn(legacy), "direct"),
            ("truncated, direct, 320 channels", truncated(legacy), "direct"),
            ("truncated, gap, 1024 channels", truncated(legacy), "gap"),
        ):
            model = camify.convert(cut, head=head, seed=0)
            row(f"{label}: random", model, answers)
            report = camify.fit_head(model, fitted, teacher=legacy)
            row(f"{label}: fitted", model, answers)
            print("\n".join(f"    {line}" for line in str(report).splitlines()), flush=True)


if __name__ == "__main__":
    main()
