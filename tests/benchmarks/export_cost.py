"""What a checkpoint costs, side by side: ``python tests/benchmarks/export_cost.py [saving] [loading] [onnx]``.

Each figure is the median over rounds of one time over that of its counterpart in the same round: VGG16 with
``head="gap"`` (77 MB, random weights), one thread. Saving and loading against safetensors alone, and loading against
building torchvision's VGG16 features and loading safetensors into them; ONNX with logits and maps against logits
alone, and against PyTorch, with 1 and 8 images of 224 px.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from torchvision.models import vgg16
from torchvision.models.vgg import cfgs, make_layers

import camify
from camify.exporters import open_exported

torch.set_num_threads(1)


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def ratios(ours, theirs, rounds=9):
    """Median, least and greatest of ours / theirs, run in turn."""
    ours(), theirs()
    found = sorted(seconds(ours) / seconds(theirs) for _ in range(rounds))
    return f"{statistics.median(found):.2f}  ({found[0]:.2f} to {found[-1]:.2f})"


def show(name, ours, theirs):
    print(f"{name:<60} {ratios(ours, theirs)}", flush=True)


def network():
    torch.manual_seed(0)
    return camify.convert(vgg16(weights=None).eval(), seed=0, num_classes=37).eval()


def saving(net, place):
    plain = {name: value.contiguous() for name, value in net.state_dict().items()}
    alone = place / "alone.safetensors"
    show(
        "save_pretrained / safetensors", lambda: net.save_pretrained(place / "model"),
        lambda: safetensors.torch.save_file(plain, alone),
    )  # fmt: skip


def loading(net, place):
    folder = net.save_pretrained(place / "model")
    weights = folder / "model.safetensors"
    safetensors.torch.save_file(make_layers(cfgs["D"]).state_dict(), place / "features.safetensors")

    def torchvisions():
        make_layers(cfgs["D"]).load_state_dict(safetensors.torch.load_file(place / "features.safetensors"))

    def read():
        return {name: value.clone() for name, value in safetensors.torch.load_file(weights).items()}  # not mapped only

    show("load / safetensors, every byte read", lambda: camify.load(folder), read)
    show("load / torchvision's vgg16 built and features loaded", lambda: camify.load(folder), torchvisions)


def onnx(net, place):
    path = camify.export(net, place / "model.onnx").path
    file = open_exported(path)
    for count in (1, 8):
        image = torch.randn(count, 3, 224, 224)
        array = {"image": image.numpy()}

        @torch.no_grad()
        def torchs(image=image):
            return net.forward_with_maps(image)

        def both(array=array):
            return file.session.run(["logits", "maps"], array)

        show(f"ONNX logits + maps / logits, {count} images", both, lambda a=array: file.session.run(["logits"], a))
        show(f"ONNX / PyTorch, logits + maps, {count} images", both, torchs)


def main(wanted):
    net = network()
    with tempfile.TemporaryDirectory() as place:
        for measure in (saving, loading, onnx):
            if not wanted or measure.__name__ in wanted:
                measure(net, Path(place))


if __name__ == "__main__":
    main(sys.argv[1:])
