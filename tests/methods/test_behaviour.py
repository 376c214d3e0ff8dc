"""Explaining leaves the network as it was, and works however the network is used."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

import camify
from camify import ConstantMapWarning, explain, methods
from camify.methods import single_cell
from camify.methods.forward_pass import many_forwards
from camify.sources.demo_network import TinyVGG

EVERY = tuple(name for name in methods.METHODS if name != "cam")  # which needs a CAM-ready network
NAMES = tuple(name for name in EVERY if name not in ("iscam", "sscam", "rise"))  # they are Score-CAM but for the masks
SAMPLED = ("iscam", "rise", "smoothgradcam++", "sscam")
FROM_ONE_FORWARD = tuple(name for name in NAMES if name not in ("fullgrad", "scorecam", "smoothgradcam++"))


class BeginsWithStep(nn.Module):
    def __init__(self, *, in_place, traceable):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.in_place, self.traceable = in_place, traceable

    def forward(self, x):
        x = x.sub_(0.1) if self.in_place else x - 0.1
        if not self.traceable and x.mean() > 1e6:
            return x
        return self.classifier(torch.relu(self.convolution(x)).mean((2, 3)))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("method", ["cam", "gradcam", "scorecam", "rise", "fullgrad"])
def test_a_network_that_begins_with_a_step_in_place_changes_no_image_of_the_users(traceable, method):
    torch.manual_seed(0)
    net = BeginsWithStep(in_place=True, traceable=traceable).eval()
    same = copy.deepcopy(net)
    same.in_place = False
    images = torch.rand(2, 3, 12, 12)
    before = images.clone()
    options = {"samples": 4} if method == "rise" else {}
    if method == "cam":
        net, same = (camify.convert(one, head="direct", input_size=12, seed=0) for one in (net, same))
    for augmentations in (None, "flip"):
        maps, expected = (
            explain(one, images, method=method, targets=1, augmentations=augmentations, **options)
            for one in (net, same)
        )  # fmt: skip
        torch.testing.assert_close(maps, expected)
    if method == "cam":
        net(images)
    assert torch.equal(images, before)


def raw(model, images, names=NAMES, **options):
    if {*names} & {*SAMPLED}:
        options = {"samples": 1, **options}
    return explain(model, images, method=names, normalize=None, size=None, **options)


def assert_same(found, expected, **tolerance):
    for name, maps in expected.items():
        torch.testing.assert_close(found[name], maps, **tolerance)


@pytest.fixture(scope="module")
def converted():
    torch.manual_seed(0)
    return camify.convert(TinyVGG(4, widths=(4, 8, 16, 16)), head="gap", head_channels=8, input_size=96, seed=0)


@pytest.fixture(params=["legacy", "converted"])
def model(request, legacy, converted):
    return legacy if request.param == "legacy" else copy.deepcopy(converted)


def test_modes_gradients_hooks_and_flags_stay(model, images):
    model.train()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.weight.requires_grad_(False)
    calls = []
    first.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    raw(model, images)
    assert modes == [module.training for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    assert calls, "the user's hook runs with the network"


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_every_gradient_mode(model, images, context):
    expected = raw(model, images)
    with context():
        found = raw(model, images * 1)
        assert_same(found, expected)
    assert not any(maps.is_inference() or maps.requires_grad for maps in found.values())


def test_frozen_networks_and_images_with_gradients(model, images):
    expected = raw(model, images)
    model.requires_grad_(False)
    assert_same(raw(model, images.clone().requires_grad_()), expected)


def test_train_mode_is_explained_as_eval(model, images):
    expected = raw(model.eval(), images)
    assert_same(raw(model.train(), images), expected)


def test_channels_last(model, images):
    expected = raw(model, images)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert_same(raw(last, images.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-5)


def test_half_precision_gives_float32_maps(model, images):
    expected = raw(model, images)
    found = raw(copy.deepcopy(model).bfloat16(), images.bfloat16(), targets=model.eval()(images).argmax(1))
    for name, maps in found.items():
        assert maps.dtype == torch.float32
        like = torch.stack([maps.flatten(), expected[name].flatten()])
        assert float(torch.corrcoef(like)[0, 1]) > (
            0.5 if name in ("scorecam", "reciprocam", "ablationcam") else 0.9
        ), name  # small differences of large sums


def test_double_precision_stays(model, images):
    assert all(maps.dtype == torch.float64 for maps in raw(copy.deepcopy(model).double(), images.double()).values())


def test_under_autocast(model, images):
    expected = raw(model, images, targets=[0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = raw(model, images, targets=[0, 1, 2])
    for name in ("gradcam", "layercam", "reciprocam"):
        assert found[name].dtype == torch.float32
        assert float(torch.corrcoef(torch.stack([found[name].flatten(), expected[name].flatten()]))[0, 1]) > 0.9


def test_wrapped_networks(model, images):
    expected = raw(model, images)
    assert_same(raw(nn.DataParallel(model), images), expected)
    compiled = torch.compile(model)
    assert_same(raw(compiled, images), expected)


def test_distributed_networks(model, images, tmp_path):
    expected = raw(model, images)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_same(raw(nn.parallel.DistributedDataParallel(model), images), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_multi_label_networks(model, images):
    """The logit of each class is explained by itself, whatever the loss makes of it."""
    found = raw(model, images, targets=torch.tensor([[0, 3], [1, 2], [3, 3]]))
    for index in (0, 1):
        single = raw(model, images, targets=torch.tensor([[0, 3], [1, 2], [3, 3]])[:, index])
        assert_same({name: maps[:, index] for name, maps in found.items()}, single)


@pytest.mark.parametrize("name", EVERY)
def test_batches_equal_single_images(model, images, name):
    method = methods.make_methods(model, [name], options={"samples": 2} if name in SAMPLED else None)[name]
    together = method(images, [1, 3, 0])
    for index, target in enumerate([1, 3, 0]):
        torch.testing.assert_close(together[index], method(images[index : index + 1], target)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("targets", [[0, 1], torch.zeros(4, dtype=torch.long), [[0], [1]], 9, -1, [0.0, 1.0, 2.0], []])
@pytest.mark.parametrize("kind", [methods.GradCAM, methods.ScoreCAM])
def test_targets_that_do_not_match_are_refused(model, images, kind, targets):
    with pytest.raises(camify.ConfigError, match="targets"):
        kind(model)(images, targets)


class LessonOfValidation(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.found = model, None

    def validation_step(self, batch, batch_index):
        assert torch.is_inference_mode_enabled()
        self.found = raw(self.model, batch[0])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_inside_lightnings_validation(model, images):
    expected = raw(model, images)
    module = LessonOfValidation(model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=3)
    pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu").validate(
        module, loader, verbose=False
    )
    assert_same(module.found, expected)


def test_one_forward_of_the_features_for_many_methods(model, images):
    raw(model, images)  # the last map is found by running the network once
    calls = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    explain(model, images, method=list(FROM_ONE_FORWARD))
    assert len(calls) == 1
    methods.GradCAM(model)(images, torch.zeros(3, 4, dtype=torch.long))
    assert len(calls) == 2


def test_the_features_are_no_part_of_the_graph(legacy, images, monkeypatch):
    """Going backwards stops at the map: no parameter takes part."""
    sizes = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, leaf, **k: sizes.append(count(out)) or real(out, leaf, **k))

    def count(value):
        seen, pending = set(), [value.grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending += [n for n, _ in node.next_functions]
        return sum("Convolution" in type(node).__name__ for node in seen)

    methods.GradCAM(legacy)(images)
    assert sizes == [0]


def test_training_between_two_calls_shows(model, images):
    before = raw(model, images, targets=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = raw(model, images, targets=0)
    fresh = raw(copy.deepcopy(model), images, targets=0)
    assert_same(after, fresh)
    assert not torch.allclose(before["gradcam"], after["gradcam"])


def test_a_replaced_head_shows(legacy, images):
    raw(legacy, images)
    torch.manual_seed(5)
    legacy.classifier = nn.Sequential(nn.Linear(16 * 36, 4))
    assert_same(raw(legacy, images), raw(copy.deepcopy(legacy), images))


def test_other_sizes_of_images(model, images):
    explain(model, images, method="gradcam")
    if isinstance(model, camify.CAMNet):
        assert explain(model, torch.randn(1, 3, 128, 64), method="gradcam").shape == (1, 128, 64)
    else:
        with pytest.raises(camify.ConversionError, match=r"classifier\.0"):
            explain(model, torch.randn(1, 3, 128, 64), method="gradcam")


@pytest.mark.filterwarnings("ignore:`torch")  # looking at all objects wakes deprecated ones
@pytest.mark.slow
def test_networks_and_maps_are_let_go(images):
    model = TinyVGG(4)
    method = methods.GradCAM(model)
    method(images)
    gc.collect()
    before = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
    for _ in range(5):
        method(images)
    gc.collect()
    assert sum(isinstance(item, torch.Tensor) for item in gc.get_objects()) <= before
    raw(model, images)
    alive = weakref.ref(model)
    del model, method
    gc.collect()
    assert alive() is None


# ---------------------------------------------------------------- maps with nothing to show


class Dead(nn.Module):
    """The last map is one constant, or the classifier sees nothing in it."""

    def __init__(self, value, weight):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        if value is not None:
            nn.init.zeros_(self.conv.weight)
            nn.init.constant_(self.conv.bias, value)
        self.fc = nn.Linear(4, 2)
        nn.init.constant_(self.fc.weight, weight)

    def forward(self, x):
        x = self.conv(F.avg_pool2d(x, 8)).relu()
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("name", EVERY)
def test_constant_maps_are_zeros_and_reported(name, value):
    torch.manual_seed(0)
    options = {"samples": 2} if name in SAMPLED else {}
    with pytest.warns(ConstantMapWarning, match=f"{name.replace('+', '.')}: nothing to show for image 0, 1"):
        heat = explain(Dead(value, 0.5), torch.randn(2, 3, 64, 64), method=name, **options)
    assert not heat.any()


def test_maps_that_are_negative_everywhere_are_zeros_and_reported():
    torch.manual_seed(0)
    model, images = Dead(None, -0.5), torch.rand(2, 3, 64, 64)
    assert float(methods.GradCAM(model)(images).max()) <= 0
    with pytest.warns(ConstantMapWarning, match="gradcam"):
        assert not explain(model, images, method="gradcam").any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(model, images, method="cam").amax((1, 2)).tolist() == [1.0, 1.0]  # no ReLU in CAM


def test_networks_that_give_nan_are_an_error(model, images):
    broken = images.clone()
    broken[1, 0, 40, 40] = torch.nan
    with pytest.raises(camify.DataError, match=r"image 1 of the batch is not finite, at layer .*\. Look for NaN"):
        explain(model, broken, method="gradcam", targets=0)


# ---------------------------------------------------------------- which networks, which layers


def test_cam_of_a_legacy_network_is_told_to_convert(legacy, images):
    with pytest.raises(camify.ConversionError, match=r"TinyVGG.*camify\.convert"):
        explain(legacy, images)


def test_cam_needs_no_layer(model):
    with pytest.raises(camify.ConfigError, match="last spatial map"):
        methods.CAM(model, "features.3")


@pytest.mark.parametrize(
    ("layer", "words"),
    [("feature.20", r"no such module.*features\.20"), ("classifier.0", r"gives \(2, 256\)"), ("", "no such module")],
)
def test_layers_that_cannot_serve_are_refused(legacy, images, layer, words):
    with pytest.raises(camify.ConfigError, match=words):
        explain(legacy, images, method="gradcam", layer=layer)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = TinyVGG(4)

    def forward(self, x):
        if float(x.mean()) > 1e9:
            raise ValueError
        return self.body(x)


@pytest.mark.parametrize("layer", [None, "body.features.20", "body.features.9"])
def test_networks_that_torch_fx_cannot_trace(images, layer):
    torch.manual_seed(0)
    model = Untraceable()
    names = ("gradcam", "layercam", "reciprocam") if layer != "body.features.9" else ("gradcam", "layercam")
    plain = "features" if layer is None else layer.removeprefix("body.")  # the last module that gives a map
    found = raw(model, images, names, layer=layer)
    assert_same(found, raw(model.body, images, names, layer=plain), rtol=1e-4, atol=1e-7)


class ClassToken(nn.Module):
    """A small ViT: the head reads the class token, which no patch of the last map reaches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0) for _ in range(2))
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))
        return self.head(x[:, 0])


def test_class_tokens_are_read_where_patches_still_reach_them(images):
    torch.manual_seed(0)
    model = ClassToken().eval()
    seen = []

    def keep(module, args, output):
        seen.append(output.clone())
        return seen[-1].clone()

    handle = model.blocks[0].register_forward_hook(keep)
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), seen[0])
    handle.remove()
    weights = gradient[:, 1:].mean(1)
    expected = (seen[0][:, 1:] * weights[:, None]).sum(2).reshape(3, 6, 6).detach()
    torch.testing.assert_close(methods.GradCAM(model)(images, 2), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (methods.GradCAMPlusPlus, {"variant": "best"}, "authors"),
        (methods.ScoreCAM, {"variant": "best"}, "authors"),
        (methods.ScoreCAM, {"precision": "int4"}, "bf16"),
        (methods.ScoreCAM, {"chunk": 0}, "chunk"),
        (methods.ReciproCAM, {"variant": "best"}, "softmax"),
    ],
)
def test_wrong_options_are_refused(legacy, kind, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        kind(legacy, **options)


def test_options_go_to_the_methods_that_have_them(model, images):
    found = raw(model, images, ["gradcam", "reciprocam"], gaussian=True)
    torch.testing.assert_close(found["reciprocam"], methods.ReciproCAM(model, gaussian=True)(images))
    with pytest.raises(camify.ConfigError, match=r"sigma: no option of gradcam, reciprocam. Known: gaussian, variant"):
        raw(model, images, ["gradcam", "reciprocam"], sigma=1)


def test_scorecam_in_reduced_precision_is_near(model, images):
    full = methods.ScoreCAM(model)(images[:1], 0)
    half = methods.ScoreCAM(model, precision="bf16")(images[:1], 0)
    assert float((full - half).abs().max() / full.abs().max()) < 0.05
    assert not torch.equal(full, half)


def test_a_network_may_move_to_another_device_between_calls():
    """What is known of a head's pools lies where the network was; the device "meta" stands for a GPU."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)
    ).eval()
    method, images = methods.ReciproCAM(net, "0"), torch.randn(2, 3, 12, 12)
    before = set(single_cell._SHARES)
    expected = method(images, 1)
    (parts,) = set(single_cell._SHARES) - before
    masks, shares = single_cell._SHARES[parts]
    single_cell._SHARES[parts] = (masks.to("meta"), shares)
    torch.testing.assert_close(method(images, 1), expected)


@pytest.mark.parametrize(
    ("device", "precision", "at_once", "expected", "last"),
    [
        ("cpu", "fp32", None, 8, True),
        ("cpu", "bf16", None, 8, True),
        ("cuda", "fp32", None, 32, False),
        ("cuda", "bf16", None, 64, True),
        ("cuda", "fp16", 3, 3, True),
    ],
)
def test_how_many_masked_images_a_forward_takes(device, precision, at_once, expected, last):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with many_forwards(net, torch.device(device), precision, at_once) as count:
        assert count == expected
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last) == last
    assert net[0].weight.is_contiguous()


def test_scorecam_runs_no_more_than_it_must(model, images):
    """One masked image per channel that is not constant, whatever the chunk; and the baseline."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[:2] = -100  # behind the ReLU: two dead channels
    rows = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    expected = methods.ScoreCAM(model, chunk=1000)(images, 1)
    first.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    found = methods.ScoreCAM(model, chunk=7)(images, 1)
    with methods.observe(model, images) as forward:
        maps = forward.activations.flatten(2)
    alive = int((maps.amax(2) > maps.amin(2)).sum())
    assert sum(rows) == 3 + 1 + alive + 3  # images, baseline, masked; and the look at the map above
    assert max(rows) == 7
    torch.testing.assert_close(found, expected)
