"""The methods beside the six first ones: by hand in float64, by other people's libraries, and by their identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import camify
from camify import explain, methods
from camify.maps import normalize

from .brute_force import BruteForce

LAYER = "1"  # a ReLU, at the size of the image: no map has to be upsampled
TARGETS = [2, 0]


def network(*, head="flat", activation=nn.ReLU):
    """Six by six pixels, four channels, four classes; a head of linear layers, or global average pooling and one."""
    torch.manual_seed(3 if head == "flat" else 10)
    behind = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), activation(), nn.Linear(8, 4)]
    if head == "gap":
        behind = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *behind).double().eval()
    for layer in (net[0], net[-1]):
        nn.init.normal_(layer.weight, std=0.5)
        nn.init.normal_(layer.bias, std=0.5)
    return net


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def raw(net, images, name, **options):
    return explain(net, images, method=name, targets=TARGETS, layer=LAYER, normalize=None, size=None, **options)


def assert_equals(found, expected):
    assert found.dtype == torch.float64
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- the formulas by hand


class ByHand(BruteForce):
    """Position by position, channel by channel; the whole network is run for everything."""

    def __init__(self, net):
        super().__init__(net, LAYER)

    def weighted(self, a, weights):
        return sum(float(weights[k]) * a[k] for k in range(len(a)))

    def hirescam(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        found = torch.zeros(a.shape[1:], dtype=torch.float64)
        for k in range(a.shape[0]):
            for y in range(a.shape[1]):
                for x in range(a.shape[2]):
                    found[y, x] += a[k, y, x] * g[k, y, x]
        return found

    def xgradcam(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        return self.weighted(a, [sum((a[k] * g[k]).flatten()) / sum(a[k].flatten()) for k in range(len(a))])

    def component(self, values, centered):
        """By the eigenvectors of the channels' products, with NumPy; the sign as the sum of the channels has it."""
        cells = values.flatten(1).T.numpy()
        cells = cells - cells.mean(0) if centered else cells
        direction = np.linalg.eigh(cells.T @ cells)[1][:, -1]
        found = cells @ direction
        return torch.from_numpy(found * np.sign(found @ cells.sum(1))).reshape(values.shape[1:])

    def eigencam(self, image, target, centered=False):
        return self.component(self.activations_and_gradients(image, target)[0], centered)

    def eigengradcam(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        return self.component(a * g, centered=True)

    def ablationcam(self, image, target):
        a, _ = self.activations_and_gradients(image, target)
        score, weights = self.logits(image)[target], []
        for k in range(len(a)):
            without = a.clone()
            without[k] = 0
            weights.append((score - self.logits(image, without)[target]) / abs(score))
        return self.weighted(a, weights)

    def lafam(self, image, target):
        a, _ = self.activations_and_gradients(image, target)
        return sum(a[k] for k in range(len(a))) / len(a)

    def finercam(self, image, target, gamma=0.6, classes=3):
        logits = self.logits(image)
        a, g = self.activations_and_gradients(image, target)
        others = sorted((k for k in range(len(logits)) if k != target), key=lambda k: abs(logits[k] - logits[target]))
        for other in others[:classes]:
            g = g - gamma / classes * self.activations_and_gradients(image, other)[1]
        return self.weighted(a, g.mean((1, 2)))

    def shapleycam(self, image, target, variant="rest"):
        """With the whole Hessian, (C h w) x (C h w)."""
        a, _ = self.activations_and_gradients(image, target)
        behind = self.model[int(LAYER) + 1 :]

        def utility(flat):
            logits = behind(flat.reshape(1, *a.shape))[0]
            return logits[target] + (torch.log(logits.exp()[target] / logits.exp().sum()) if variant == "rest" else 0)

        gradient = torch.autograd.functional.jacobian(utility, a.flatten())
        product = torch.autograd.functional.hessian(utility, a.flatten()) @ a.flatten()
        return self.weighted(a, (gradient - product / 2).reshape(a.shape).mean((1, 2)))

    def smoothgradcampp(self, image, target, samples, sigma, seed):
        a, _ = self.activations_and_gradients(image, target)
        noises = torch.randn(samples, *image.shape, generator=torch.Generator().manual_seed(seed)).double()
        grads = [self.activations_and_gradients(image + sigma * noise, target)[1] for noise in noises]
        first, second, third = (sum(g**power for g in grads) / samples for power in (1, 2, 3))
        weights = []
        for k in range(len(a)):
            alphas = second[k] / (2 * second[k] + a[k].sum() * third[k])
            weights.append((first[k].clamp(min=0) * alphas).nansum())  # 0 / 0 where no gradient ever arrives
        return self.weighted(a, weights)

    def scored(self, image, target, masked):
        """Weights by the mean score of the masked images that ``masked`` gives for a mask."""
        a, _ = self.activations_and_gradients(image, target)
        base, scores = self.logits(torch.zeros_like(image))[target], []
        for k, mask in enumerate(self.masks(a, image.shape[1:])):
            gains = [self.logits(item)[target] - base for item in masked(mask)]
            scores.append(sum(gains) / len(gains) if a[k].max() > a[k].min() else torch.zeros_like(base))
        return self.weighted(a, torch.stack(scores).softmax(0))

    def sscam(self, image, target, samples, sigma, seed, variant="mask"):
        shape = image.shape[1:] if variant == "mask" else image.shape
        noises = sigma * torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed)).double()
        if variant == "mask":
            return self.scored(image, target, lambda mask: [image * (mask + noise) for noise in noises])
        return self.scored(image, target, lambda mask: [image * mask + noise for noise in noises])

    def iscam(self, image, target, samples, variant="sums"):
        steps = [sum(range(1, i + 1)) if variant == "sums" else i for i in range(1, samples + 1)]
        return self.scored(image, target, lambda mask: [step / samples * image * mask for step in steps])


NOISE = {"samples": 3, "sigma": 0.5, "seed": 7}


@pytest.mark.parametrize("head", ["flat", "gap"])
@pytest.mark.parametrize(
    ("name", "formula", "options", "by_hand"),
    [
        ("hirescam", "hirescam", {}, {}),
        ("xgradcam", "xgradcam", {}, {}),
        ("eigencam", "eigencam", {}, {}),
        ("eigencam", "eigencam", {"variant": "pytorch-grad-cam"}, {"centered": True}),
        ("eigengradcam", "eigengradcam", {}, {}),
        ("ablationcam", "ablationcam", {"chunk": 3}, {}),
        ("lafam", "lafam", {}, {}),
        ("finercam", "finercam", {}, {}),
        ("finercam", "finercam", {"gamma": 1.5, "classes": 2}, {"gamma": 1.5, "classes": 2}),
        ("shapleycam", "shapleycam", {}, {}),
        ("shapleycam", "shapleycam", {"variant": "logit"}, {"variant": "logit"}),
        ("smoothgradcam++", "smoothgradcampp", NOISE, NOISE),
        ("sscam", "sscam", {**NOISE, "chunk": 3}, NOISE),
        ("sscam", "sscam", {**NOISE, "variant": "input"}, {**NOISE, "variant": "input"}),
        ("iscam", "iscam", {"samples": 3}, {"samples": 3}),
        ("iscam", "iscam", {"samples": 3, "variant": "line"}, {"samples": 3, "variant": "line"}),
    ],
)
def test_maps_equal_the_formula_by_hand(images, head, name, formula, options, by_hand):
    net = network(head=head, activation=nn.Tanh if name == "shapleycam" else nn.ReLU)
    found, brute = raw(net, images, name, **options), ByHand(net)
    for image, target, maps in zip(images, TARGETS, found, strict=True):
        assert_equals(maps, getattr(brute, formula)(image, target, **by_hand))


# ---------------------------------------------------------------- identities


def test_hirescams_sum_is_the_logit_without_what_the_biases_add(images):
    """Of a head of linear layers and ReLUs: the bias part, layer by layer, with the ReLUs as they are for the image."""
    net = network()
    maps = raw(net, images, "hirescam")
    first, second = net[4], net[6]
    with torch.no_grad():
        hidden = first(net[:4](images))
        bias_part = second.bias + ((hidden > 0) * first.bias) @ second.weight.T
        logits = net(images)
    for index, target in enumerate(TARGETS):
        rest = float(logits[index, target] - bias_part[index, target])
        assert abs(float(bias_part[index, target])) > 0.01
        assert float(maps[index].sum()) == pytest.approx(rest, rel=1e-9)
        assert float(raw(net, images, "xgradcam")[index].sum()) == pytest.approx(rest, rel=1e-9)


def test_closed_forms_behind_global_average_pooling(images):
    net = network(head="gap")
    plain = explain(net, images, targets=TARGETS, normalize=None, size=None)
    with torch.no_grad():
        maps, logits = net[:2](images), net(images)
    weight = net[4].weight.detach()
    for name in ("hirescam", "xgradcam"):
        assert_equals(raw(net, images, name), plain / 36)
    assert_equals(raw(net, images, "shapleycam", variant="logit"), plain / 36)
    assert_equals(raw(net, images, "smoothgradcam++"), raw(net, images, "gradcam++"))
    others = torch.stack([weight[[k for k in range(4) if k != target]].mean(0) for target in TARGETS])
    finer = torch.einsum("nchw,nc->nhw", maps, weight[TARGETS] - 0.6 * others) / 36
    assert_equals(raw(net, images, "finercam"), finer)
    drops = weight[TARGETS] * maps.mean((2, 3)) / logits[range(2), TARGETS].abs()[:, None]
    assert_equals(raw(net, images, "ablationcam"), torch.einsum("nchw,nc->nhw", maps, drops))


def test_without_second_derivatives_shapleycam_of_a_logit_is_gradcam(images):
    net = network()
    assert_equals(raw(net, images, "shapleycam", variant="logit"), raw(net, images, "gradcam"))
    assert float((raw(net, images, "shapleycam") - raw(net, images, "gradcam")).abs().max()) > 1e-3


def test_without_noise_and_steps_they_are_what_they_extend(images):
    net = network()
    assert_equals(raw(net, images, "smoothgradcam++", sigma=0.0), raw(net, images, "gradcam++"))
    assert_equals(raw(net, images, "finercam", gamma=0), raw(net, images, "gradcam"))
    for name, options in (("sscam", {"sigma": 0.0, "samples": 2}), ("iscam", {"samples": 1})):
        assert_equals(raw(net, images, name, **options), raw(net, images, "scorecam"))


def test_the_sign_of_a_component_agrees_with_the_sum_of_the_channels(images):
    net = network()
    assert float(raw(net, images, "eigencam").min()) >= -1e-12  # behind a ReLU nothing is negative
    turned = nn.Sequential(*net[:2], nn.Hardtanh(-9, 9), *net[2:])  # the same network, another layer
    negative = nn.Sequential(net[0], nn.Softsign(), *net[2:]).eval()
    for model, layer in ((turned, "2"), (negative, "1")):
        for name, along in (("eigencam", "lafam"), ("eigengradcam", "hirescam")):
            found = explain(model, images, method=[name, along], targets=1, layer=layer, normalize=None, size=None)
            assert bool(((found[name] * found[along]).sum((1, 2)) > 0).all())


def test_a_negative_logit_does_not_turn_ablationcam_around(images):
    """The drop that a channel causes keeps its sign: other biases of the last layer change nothing but the size."""
    net = network()
    before = raw(net, images, "ablationcam")
    with torch.no_grad():
        scores = net(images)[range(2), TARGETS]
        net[6].bias -= 50
        lower = net(images)[range(2), TARGETS]
    assert bool((lower < 0).all())
    factor = (scores / lower).abs()[:, None, None]
    assert_equals(raw(net, images, "ablationcam"), before * factor)


# ---------------------------------------------------------------- what holds for all of them


LABEL_FREE = ("eigencam", "lafam")
NOISY = ("smoothgradcam++", "sscam")
SAMPLED = (*NOISY, "iscam", "rise")


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_only_label_free_methods_are_the_same_for_every_class(images, name):
    net = network(head="gap" if name == "cam" else "flat")
    options = {"samples": 2} if name in SAMPLED else {}
    both = explain(net, images, method=name, targets=[[0, 1], [0, 1]], normalize=None, size=None, **options)
    assert methods.METHODS[name].class_discriminative is (name not in LABEL_FREE)
    assert torch.equal(both[:, 0], both[:, 1]) is (name in LABEL_FREE)


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_that_of_the_seed_and_no_draw_of_the_program(images, name):
    net, options = network(), {"samples": 2, "sigma": 0.5}
    state = torch.get_rng_state()
    first = raw(net, images, name, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(raw(net, images, name, **options), first)
    assert not torch.allclose(raw(net, images, name, seed=1, **options), first)
    alone = explain(net, images[1], method=name, targets=TARGETS[1], layer=LAYER, normalize=None, size=None, **options)
    torch.testing.assert_close(alone[0], first[1])  # whatever the batch


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        ("hirescam", 0),
        ("ablationcam", 0),
        ("smoothgradcam++", 2),
        ("scorecam", 5),
        ("sscam", 9),
        ("iscam", 9),
    ],
)
def test_further_forwards_are_as_many_as_are_said(images, name, forwards):
    net, rows = network(), []
    options = {"samples": 2} if name in SAMPLED else {}
    made = methods.make_methods(net, [name], LAYER, options)[name]
    made(images[:1], 0)  # the layer's place is found once
    handle = net[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    made(images[:1], 0)
    handle.remove()
    assert made.further_forwards(4) == forwards
    assert sum(rows) == 1 + forwards


def test_maps_that_say_nothing_are_zeros():
    """Constant channels have no principal component; their rounding errors are not shown as one."""
    net = network(head="gap")
    nn.init.zeros_(net[0].weight)
    with pytest.warns(camify.ConstantMapWarning, match="eigengradcam: nothing to show"):
        heat = explain(net, torch.rand(1, 3, 6, 6, dtype=torch.float64), method="eigengradcam", targets=0)
    assert not heat.any()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("eigencam", {"variant": "best"}, "EigenCAM: variant='best' is unknown. Choose one of paper, pytorch-grad-cam"),
        ("ablationcam", {"chunk": 0}, "AblationCAM: chunk=0"),
        ("finercam", {"gamma": -1}, "FinerCAM: gamma=-1"),
        ("finercam", {"classes": 0}, "FinerCAM: classes=0"),
        ("finercam", {"variant": "best"}, "Choose one of paper, authors"),
        ("shapleycam", {"variant": "best"}, "Choose one of rest, logit"),
        ("smoothgradcam++", {"samples": 0}, "SmoothGradCAMPlusPlus: samples=0"),
        ("smoothgradcam++", {"sigma": -0.1}, "sigma=-0.1 must be a number"),
        ("sscam", {"variant": "best"}, "Choose one of mask, input"),
        ("sscam", {"samples": 1.5}, "SSCAM: samples=1.5"),
        ("iscam", {"variant": "best"}, "Choose one of sums, line"),
    ],
)
def test_wrong_options_are_refused(images, name, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        raw(network(), images, name, **options)


def test_steps_that_cannot_be_derived_twice_are_named(images, monkeypatch):
    derived = torch.autograd.grad

    def once(outputs, inputs, grad_outputs=None, **options):
        if grad_outputs is not None:
            raise RuntimeError("derivative for aten::step_backward is not implemented.")
        return derived(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", once)
    with pytest.raises(camify.ConversionError, match=r"layer 1: a step behind it cannot be derived twice.*Use gradcam"):
        raw(network(activation=nn.Tanh), images, "shapleycam")


# ---------------------------------------------------------------- other people's libraries


def single(*, head="flat", activation=nn.ReLU):
    return network(head=head, activation=activation).float()


def method_of(library, kind):
    """A library's method, where the version that is installed has it."""
    module = pytest.importorskip(library)
    return getattr(module, kind, None) or pytest.skip(f"this {library} has no {kind}")


def theirs(kind, net, images):
    """Heat of pytorch-grad-cam."""
    made = method_of("pytorch_grad_cam", kind)
    target_of = method_of("pytorch_grad_cam.utils.model_targets", "ClassifierOutputTarget")
    with made(model=net, target_layers=[net[1]]) as cam:
        return torch.from_numpy(cam(input_tensor=images.float(), targets=[target_of(target) for target in TARGETS]))


def heat(net, images, name, **options):
    return explain(net, images.float(), method=name, targets=TARGETS, layer=LAYER, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "activation", "options"),
    [
        ("hirescam", "HiResCAM", nn.ReLU, {}),
        ("xgradcam", "XGradCAM", nn.ReLU, {}),
        ("shapleycam", "ShapleyCAM", nn.GELU, {"variant": "logit"}),
    ],
)
def test_pytorch_grad_cam(images, name, kind, activation, options):
    net = single(activation=activation)
    torch.testing.assert_close(heat(net, images, name, **options), theirs(kind, net, images), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("eigencam", "EigenCAM", {"variant": "pytorch-grad-cam"}), ("eigengradcam", "EigenGradCAM", {})],
)
def test_pytorch_grad_cams_components_up_to_their_sign(images, name, kind, options):
    net = single()
    ours = explain(net, images.float(), method=name, targets=TARGETS, layer=LAYER, normalize=None, **options)
    for maps, expected in zip(ours, theirs(kind, net, images), strict=True):
        errors = [float((normalize(maps.mul(sign).relu()) - expected).abs().max()) for sign in (1, -1)]
        assert min(errors) < 1e-4


@pytest.mark.slow
def test_pytorch_grad_cams_ablations(images, monkeypatch):
    """Where the logit is positive, and a channel's smallest value is zero: elsewhere theirs are something else."""
    net = single()
    with torch.no_grad():
        net[6].bias += 20
    monkeypatch.setattr("tqdm.tqdm", lambda iterable: iterable)
    expected = theirs("AblationCAM", net, images)
    torch.testing.assert_close(heat(net, images, "ablationcam"), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_authors_finercam(images):
    """Their code, which pytorch-grad-cam has: of the predicted class."""
    net = single()
    with method_of("pytorch_grad_cam", "FinerCAM")(model=net, target_layers=[net[1]]) as cam:
        expected = torch.from_numpy(cam(input_tensor=images.float(), alpha=0.8))
    found = explain(net, images.float(), method="finercam", layer=LAYER, variant="authors", gamma=0.8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def torch_cam(kind, net, images, prepare=lambda extractor: None, **options):
    """Raw maps of torch-cam, ReLU-ed by itself."""
    found = []
    made = method_of("torchcam.methods", kind)
    for image, target in zip(images.float(), TARGETS, strict=True):
        with made(net, net[1], input_shape=tuple(image.shape), **options) as extractor, torch.enable_grad():
            prepare(extractor)
            scores = net(image[None].requires_grad_())
            found.append(extractor(target, scores, normalized=False)[0][0].detach())
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "theirs"),
    [("xgradcam", "XGradCAM", {}), ("finercam", "FinerCAM", {}), ("iscam", "ISCAM", {"num_samples": 3})],
)
def test_torch_cam(images, name, kind, theirs):
    net = single()
    options = {"samples": 3} if name == "iscam" else {}
    found = raw(net, images.float(), name, **options).relu()
    torch.testing.assert_close(found, torch_cam(kind, net, images, **theirs), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_torch_cams_smoothed_scores_with_the_same_noise(images):
    class SameNoise:
        def __init__(self):
            self.noises = iter(0.5 * torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(7)))

        def sample(self, size):
            return next(self.noises).expand(size)

    net = single()
    expected = torch_cam("SSCAM", net, images, lambda cam: setattr(cam, "_distrib", SameNoise()), num_samples=3)
    torch.testing.assert_close(raw(net, images.float(), "sscam", **NOISE).relu(), expected, rtol=1e-3, atol=1e-5)


def test_captums_gradient_times_activation_is_hirescam(images):
    net = single()
    products = method_of("captum.attr", "LayerGradientXActivation")(net, net[1]).attribute(
        images.float(), torch.tensor(TARGETS)
    )
    torch.testing.assert_close(raw(net, images.float(), "hirescam"), products.sum(1).detach(), rtol=1e-4, atol=1e-6)
