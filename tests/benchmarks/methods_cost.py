"""What maps cost, ours and other libraries', side by side: ``python tests/benchmarks/methods_cost.py [NETWORK ...]``.

Each figure is the median over rounds of a method's time over that of the plain forward run before it in the same round
(8 images, 224 px, random weights, top-1 class; upsampled and scaled to [0, 1] where the library does so). With
``--memory`` it is the growth of the process's peak memory beyond that of a plain forward, in MiB, each in a process of
its own. ``--scorecam`` takes Score-CAM of one image instead, in forwards of one image.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
import warnings

import torch
from torchvision.models import get_model

import camify
from camify import explain

NETWORKS = {  # name: legacy, head (None: as it is), name of the last map's module, of the last layer
    "vgg16-gap": ("vgg16", "gap", "features", "classifier"),
    "resnet18": ("resnet18", None, "layer4", "fc"),
    "alexnet-gap": ("alexnet", "gap", "features", "classifier"),
    "vgg16": ("vgg16", None, "features.29", None),
    "alexnet": ("alexnet", None, "features.11", None),
}
FOUR = ["cam", "gradcam", "gradcam++", "reciprocam"]


def build(name):
    legacy, head, layer, linear = NETWORKS[name]
    torch.manual_seed(0)
    model = get_model(legacy, weights=None).eval()
    if head is not None:
        model = camify.convert(model, head=head, seed=0).eval()
    return model, layer, linear


def ours(model, layer, linear):
    names = [*(["cam"] if linear else []), "gradcam", "gradcam++", "layercam", "reciprocam"]
    for name in names:
        yield f"camify {name}", lambda x, name=name: explain(model, x, method=name)
    yield "camify, all of these", lambda x: explain(model, x, method=names)
    if linear:
        yield "camify, the four of issue 4", lambda x: explain(model, x, method=FOUR)
        top = torch.arange(5).repeat(8, 1)
        yield "camify cam, 5 classes", lambda x: explain(model, x, method="cam", targets=top[: len(x)])


def theirs(model, layer, linear):
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM
    from torchcam import methods as torchcam

    def torch_cam(kind, **options):
        def run(x):
            with kind(model, layer, **options) as extractor:
                scores = model(x.requires_grad_(kind is not torchcam.CAM))
                return extractor(scores.argmax(1).tolist(), scores) if kind is not torchcam.CAM else extractor(
                    scores.argmax(1).tolist())  # fmt: skip

        return run

    def pytorch_grad_cam(kind):
        def run(x):
            with kind(model=model, target_layers=[model.get_submodule(layer)]) as cam:
                return cam(input_tensor=x, targets=None)

        return run

    def captum(x):
        targets = model(x).argmax(1)
        return LayerGradCam(model, model.get_submodule(layer)).attribute(x, targets)

    if linear:
        yield "torch-cam CAM", torch_cam(torchcam.CAM, fc_layer=linear)
    for kind in (torchcam.GradCAM, torchcam.GradCAMpp, torchcam.LayerCAM):
        yield f"torch-cam {kind.__name__}", torch_cam(kind)
    for kind in (GradCAM, GradCAMPlusPlus, LayerCAM):
        yield f"pytorch-grad-cam {kind.__name__}", pytorch_grad_cam(kind)
    yield "captum LayerGradCam, argmax first", captum


def seconds(work, x):
    start = time.perf_counter()
    work(x)
    return time.perf_counter() - start


def speed(name, rounds):
    model, layer, linear = build(name)
    images = torch.randn(8, 3, 224, 224)
    methods = [*ours(model, layer, linear), *theirs(model, layer, linear)]

    def forward(x):
        with torch.inference_mode():
            model(x)

    times = {key: [] for key, _ in methods}
    for _, run in methods:
        run(images.clone())  # warm; ours finds the last map
    for _ in range(rounds):
        for key, run in methods:
            plain = seconds(forward, images)
            times[key].append(seconds(run, images.clone()) / plain)
    for key, ratios in times.items():
        print(f"{name:12}{key:38}{statistics.median(ratios):8.2f}", flush=True)


def peak(name, index):
    model, layer, linear = build(name)
    images = torch.randn(8, 3, 224, 224)
    with torch.inference_mode():
        model(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    key, run = [*ours(model, layer, linear), *theirs(model, layer, linear)][index]
    run(images)
    print(f"{name:12}{key:38}{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:8.0f}", flush=True)


def memory(name):
    model, layer, linear = build(name)
    count = len([*ours(model, layer, linear), *theirs(model, layer, linear)])
    for index in range(count):
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(name, index))
        process.start()
        process.join()


def scorecam(name):
    from pytorch_grad_cam import ScoreCAM
    from torchcam import methods as torchcam

    model, layer, _ = build(name)
    image = torch.randn(1, 3, 224, 224)

    def forward(x):
        with torch.inference_mode():
            model(x)

    def torch_cam(x):
        with torchcam.ScoreCAM(model, layer, batch_size=16) as extractor, torch.inference_mode():
            return extractor(model(x).argmax(1).tolist())

    def grad_cam(x):
        with ScoreCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
            return cam(input_tensor=x, targets=None)

    forward(image)
    plain = statistics.median(seconds(forward, image) for _ in range(9))
    for key, run in {
        "camify scorecam": lambda x: explain(model, x, method="scorecam"),
        "camify scorecam bf16": lambda x: explain(model, x, method="scorecam", precision="bf16"),
        "torch-cam ScoreCAM": torch_cam,
        "pytorch-grad-cam ScoreCAM": grad_cam,
    }.items():
        print(f"{name:12}{key:38}{seconds(run, image) / plain:8.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--scorecam", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for network in options.networks:
        if options.memory:
            memory(network)
        elif options.scorecam:
            scorecam(network)
        else:
            speed(network, options.rounds)
