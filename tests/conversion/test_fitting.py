"""fit_head against solvers that see the whole feature matrix, and what it must leave alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify.conversion import closed_form as fitting
from camify.conversion.closed_form import fit_head
from camify.errors import ConfigError, ConversionError, DataError
from camify.model import CAMNet

C, K, N = 12, 5, 150


def network(pool="gap", classes=K, channels=C, bias=True):
    features = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    return CAMNet(features, nn.Linear(channels, classes, bias=bias), pool=pool, dropout=0.5).eval()


class Teacher(nn.Module):
    """A network that looks at the image otherwise; its logits have a large common part per image."""

    def __init__(self, classes=K):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 24), nn.Tanh(), nn.Linear(24, classes))

    def forward(self, x):
        return 3 * self.layers(x) + 7 * x.mean((1, 2, 3))[:, None] + 2


def pictures(n=N):
    return torch.randn(n, 3, 8, 8) + 2 * torch.randn(n, 3, 1, 1)


@torch.no_grad()
def matrices(model, images, teacher=None, labels=None):
    """Pooled features and centered targets of all images, float64 numpy."""
    x = model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()
    y = np.eye(K)[labels.numpy()] if teacher is None else teacher(images).double().numpy()
    return x, y - y.mean(1, keepdims=True)


def augmented(x, y, ridge):
    """Ridge by lstsq on the rows and sqrt(lambda) I below them; the intercept is a column without a penalty."""
    left = np.block([[x, np.ones((len(x), 1))], [np.sqrt(ridge) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))]])
    solution = np.linalg.lstsq(left, np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    return solution[:-1].T, solution[-1]


def head_of(model):
    return model.classifier.weight.detach().double().numpy(), model.classifier.bias.detach().double().numpy()


@pytest.mark.parametrize("pool", ["gap", "gmp", "lse"])
@pytest.mark.parametrize("ridge", [0.0, 0.37, 50.0])
def test_equals_ridge_on_the_whole_matrix(pool, ridge):
    model, teacher, images = network(pool), Teacher().eval(), pictures()
    x, y = matrices(model, images, teacher)
    report = fit_head(model, images, teacher=teacher, ridge=ridge)
    weight, bias = augmented(x, y, ridge)
    for ours, theirs in zip(head_of(model), (weight, bias), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5)
    assert report.ridge == ridge
    residual = y - x @ weight.T - bias
    assert report.r2_after == pytest.approx(1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum(), abs=1e-9)


def test_figures_are_those_of_the_network():
    model, teacher, images = network(), Teacher().eval(), pictures()

    @torch.no_grad()
    def figures():
        ours, theirs = model(images).double(), teacher(images).double()
        kl = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
        ours, theirs = ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
        r2 = 1 - (ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()
        return [float((ours.argmax(1) == theirs.argmax(1)).double().mean()), float(kl), float(r2)]

    before = figures()
    report = fit_head(model, images, teacher=teacher)
    assert [report.agreement_before, report.kl_before, report.r2_before] == pytest.approx(before, abs=1e-5)
    assert [report.agreement_after, report.kl_after, report.r2_after] == pytest.approx(figures(), abs=1e-5)
    assert report.kl_after < report.kl_before
    assert (report.n, report.kept, report.target) == (N, N, "teacher")
    assert report.seconds > 0
    assert f"{report.agreement_after:.1%}" in str(report)


def test_streaming_equals_all_at_once():
    model, teacher, images = network(), Teacher().eval(), pictures()
    other = copy.deepcopy(model)
    whole = fit_head(model, [images], teacher=teacher)
    parts = fit_head(other, (part for part in images.split([1, 7, 64, 3, 75])), teacher=teacher)
    torch.testing.assert_close(model.classifier.weight, other.classifier.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.classifier.bias, other.classifier.bias, rtol=1e-5, atol=1e-6)
    assert parts.kl_after == pytest.approx(whole.kl_after, rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_linear_teacher_on_the_same_features_is_recovered(offset):
    """Also where the features' mean is 10,000 times their spread: the sums must not cancel."""
    model, images = network().double(), pictures().double()
    model.features.append(Shift(offset))
    teacher = copy.deepcopy(model)
    nn.init.normal_(teacher.classifier.weight)
    report = fit_head(model, images, teacher=teacher, ridge=1e-9)
    assert report.r2_after == pytest.approx(1, abs=1e-9)
    assert report.agreement_after == 1
    assert report.kl_after == pytest.approx(0, abs=1e-9)
    wanted = teacher.classifier.weight - teacher.classifier.weight.mean(0)
    torch.testing.assert_close(model.classifier.weight, wanted, atol=1e-6, rtol=1e-6)


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


def refit_without(x, y, ridge, row):
    """The residual of a row of the fit to all others: centered, by lstsq, of least norm where ridge is 0."""
    left, right = np.delete(x, row, 0), np.delete(y, row, 0)
    mean_x, mean_y = left.mean(0), right.mean(0)
    left = np.vstack([left - mean_x, np.sqrt(ridge) * np.eye(x.shape[1])])
    right = np.vstack([right - mean_y, np.zeros((x.shape[1], y.shape[1]))])
    return y[row] - mean_y - (x[row] - mean_x) @ np.linalg.lstsq(left, right, rcond=1e-10)[0]


def brute_force(x, y, ridge):
    return np.stack([refit_without(x, y, ridge, row) for row in range(len(x))])


def summed(x, y):
    sums = fitting.RowSums()
    for part_x, part_y in zip(torch.from_numpy(x).split(500), torch.from_numpy(y).split(500), strict=True):
        sums.add(part_x, part_y)
    sums.center()
    return sums


@pytest.mark.parametrize("n", [2, 3, 10, C + 1, C + 2, 60])
@pytest.mark.parametrize("ridge", [0.0, 1e-5, 0.37, None])
def test_leave_one_out_is_that_of_n_refits(n, ridge):
    """Also with fewer images than channels, where every leverage at lambda = 0 is 1."""
    model, teacher, images = network(), Teacher().eval(), pictures(n)
    with torch.no_grad():
        model.features[1].bias[:3] = -1e3  # channels that are constant
    x, y = matrices(model, images, teacher)
    report = fit_head(model, images, teacher=teacher, ridge=ridge)
    residuals = brute_force(x, y, report.ridge)
    assert report.r2_loo == pytest.approx(1 - (residuals**2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-5, abs=1e-7)
    assert report.agreement_loo == pytest.approx(((y - residuals).argmax(1) == y.argmax(1)).mean())
    assert f"{report.agreement_loo:.1%}" in str(report)


@pytest.mark.parametrize(("n", "channels"), [(8, C), (30, C), (150, C), (40, 3), (40, 300)])
def test_lambda_is_the_one_of_least_leave_one_out_error(n, channels):
    """By the whole hat matrix, for the whole grid; with 3 channels there are more classes than features."""
    model, teacher, images = network(channels=channels), Teacher().eval(), pictures(n)
    x, y = matrices(model, images, teacher)
    centered = x - x.mean(0)
    gram = centered @ centered.T
    errors = {}
    for ridge in fitting._GRID.numpy() * np.linalg.eigvalsh(gram)[-1]:
        rest = np.eye(n) - 1 / n - np.linalg.solve(gram + ridge * np.eye(n), gram)
        errors[ridge] = float((((rest @ y) / np.diag(rest)[:, None]) ** 2).sum())
    report = fit_head(model, images, teacher=teacher)
    nearest = min(errors, key=lambda ridge: abs(ridge - report.ridge))
    assert report.ridge == pytest.approx(nearest, rel=1e-6)
    assert errors[nearest] == pytest.approx(min(errors.values()), rel=1e-5)
    assert report.r2_loo == pytest.approx(1 - errors[nearest] / ((y - y.mean(0)) ** 2).sum(), abs=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-3, 1.0])
def test_a_row_alone_in_its_direction_has_a_leave_one_out_error(ridge):
    """Its leverage is 1 to all digits, its residual 0; without it the direction is not seen at all."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
    x[:, 2] = 0
    x[7, 2] = 30.0
    ours = fitting._Ridge(summed(x, y)).held_out(ridge).numpy()
    np.testing.assert_allclose(ours, brute_force(x, y, ridge), atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e3])
def test_beyond_2048_images_the_kept_rows_have_their_exact_errors(ridge):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 6)) * np.geomspace(1, 30, 6) + 100
    y = 0.1 * x @ rng.normal(size=(6, 3)) + rng.standard_t(4, size=(5000, 3))
    sums = summed(x, y)
    ours = fitting._Ridge(sums).held_out(ridge).numpy()
    assert ours.shape == (2048, 3)
    for kept in range(0, 2048, 300):
        (row,) = np.flatnonzero((x == sums.rows[kept].numpy()).all(1))
        np.testing.assert_allclose(ours[kept], refit_without(x, y, ridge, row), rtol=1e-8)


def test_the_held_out_figures_are_those_of_images_not_seen():
    """Fitted to 60 images with 40 channels: what is measured on them flatters, leave-one-out does not."""
    model, teacher, images, others = network(channels=40), Teacher().eval(), pictures(60), pictures(2000)
    report = fit_head(model, images, teacher=teacher, ridge=0.0)
    x, y = matrices(model, others, teacher)
    weight, bias = head_of(model)
    unseen = 1 - ((y - x @ weight.T - bias) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert abs(report.r2_loo - unseen) < 0.3 * abs(report.r2_after - unseen)


@pytest.mark.parametrize("form", ["tensor", "dicts", "pairs"])
def test_labels_make_a_usable_classifier(form):
    labels = torch.arange(200) % 3
    images = 0.7 * torch.randn(200, 3, 8, 8) + F.one_hot(labels, 3)[:, :, None, None]
    model = network(classes=3)
    if form == "tensor":
        source, given = images, labels
    else:
        pairs = zip(images.split(33), labels.split(33), strict=True)
        source = [{"image": a, "label": b} if form == "dicts" else [a, b] for a, b in pairs]
        given = True
    report = fit_head(model, source, labels=given)
    with torch.no_grad():
        logits = model(images)
    assert report.target == "labels"
    assert report.agreement_after == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert report.agreement_after > 0.9
    assert report.kl_after == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert report.kl_after < 0.5 * report.kl_before


def test_labels_that_mean_nothing_do_not_make_it_sure():
    model, images = network(), pictures(2000)
    report = fit_head(model, images, labels=torch.randint(K, (2000,)))
    assert report.kl_after == pytest.approx(np.log(K), abs=0.02)


def test_two_gaussian_classes_get_the_probabilities_of_discriminant_analysis():
    """Log odds of means +-m and variance 1 are 2 m x."""
    m, labels = 0.9, torch.arange(6000) % 2
    x = torch.randn(6000) + m * (2 * labels - 1)
    model = CAMNet(nn.Conv2d(3, 1, 1, bias=False), nn.Linear(1, 2)).eval()
    nn.init.ones_(model.features.weight)
    fit_head(model, (x / 3)[:, None, None, None].expand(-1, 3, 2, 2), labels=labels)
    slope = float((model.classifier.weight[1] - model.classifier.weight[0]).detach())
    assert slope == pytest.approx(2 * m, rel=0.07)


def test_leaves_everything_else_alone():
    model, teacher, images = network(), Teacher(), pictures()
    model.train()
    model.features[1].eval()
    teacher.train()
    model.features[0].weight.requires_grad_(False)
    model.classifier.weight.grad = torch.ones(K, C)
    model.results = {"accuracy": 0.5}
    modes = [module.training for net in (model, teacher) for module in net.modules()]
    kept = {name: value.clone() for name, value in [*model.features.state_dict().items()]}
    weight = model.classifier.weight
    fit_head(model, images, teacher=teacher)
    assert [module.training for net in (model, teacher) for module in net.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in model.features.state_dict().items())
    assert model.classifier.weight is weight
    assert weight.requires_grad
    assert torch.equal(weight.grad, torch.ones(K, C))
    assert model.features[0].weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.results == {}
    assert model.identity_error(images[:4]) < 1e-5


def test_both_run_in_eval_mode():
    """Dropout and batch statistics of either would change the fit."""
    model, images = network(), pictures()
    teacher = nn.Sequential(nn.Dropout(0.5), Teacher()).eval()
    other = copy.deepcopy(model).train()
    fit_head(model, images, teacher=teacher)
    fit_head(other, images, teacher=teacher.train())
    assert torch.equal(model.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model, teacher, images = network(), Teacher().eval(), pictures()
    other = copy.deepcopy(model).to(dtype)
    fit_head(model, images, teacher=teacher, ridge=10.0)
    report = fit_head(other, images, teacher=teacher, ridge=10.0)
    assert other.classifier.weight.dtype == other.classifier.bias.dtype == dtype
    loose = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(other.classifier.weight.float(), model.classifier.weight, atol=loose, rtol=loose)
    assert report.agreement_after > report.agreement_before


def test_memory_is_bounded(monkeypatch):
    seen = []

    class Spy(fitting.RowSums):
        def __init__(self, *given):
            super().__init__(*given)
            seen.append(self)

    monkeypatch.setattr(fitting, "RowSums", Spy)
    model, teacher = network(), Teacher().eval()
    report = fit_head(model, (pictures(125) for _ in range(40)), teacher=teacher)
    assert (report.n, report.kept) == (5000, 2048)
    (sums,) = seen
    numbers = sum(value.numel() for value in vars(sums).values() if isinstance(value, torch.Tensor))
    assert numbers < 2048 * (C + K + 2) + C * C + C * K + 4 * (C + K) + 2


def test_the_kept_rows_are_a_uniform_sample():
    """Every tenth of the pass has its share of 2,048 slots, within five standard deviations."""
    sums = fitting.RowSums()
    for start in range(0, 10_000, 500):
        rows = torch.arange(start, start + 500, dtype=torch.float64)[:, None]
        sums.add(rows, rows.clone())
    assert torch.equal(sums.rows, sums.targets)
    assert len(sums.rows.unique()) == 2048
    shares = torch.histc(sums.rows, 10, 0, 10_000)
    assert (shares - 204.8).abs().max() < 5 * np.sqrt(204.8 * 0.9)


class Ragged(nn.Module):
    def forward(self, x):
        return {"logits": x}


class Broken(Teacher):
    def forward(self, x):
        return super().forward(x) / 0


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ConfigError, "either", {}),
        (ConfigError, "either", {"teacher": Teacher(), "labels": torch.zeros(N).long()}),
        (ConfigError, "loader", {"labels": True}),
        (ConfigError, "ridge", {"teacher": Teacher(), "ridge": -1.0}),
        (ConfigError, "ridge", {"teacher": Teacher(), "ridge": float("nan")}),
        (ConversionError, "teacher", {"teacher": Teacher(K + 1)}),
        (ConversionError, "dict", {"teacher": Ragged()}),
        (DataError, "finite", {"teacher": Broken()}),
        (DataError, "shape", {"labels": torch.zeros(N - 1).long()}),
        (DataError, "indices", {"labels": torch.zeros(N)}),
        (DataError, "0 to 4", {"labels": torch.full((N,), K)}),
        (DataError, "0 to 4", {"labels": torch.full((N,), -1)}),
        (DataError, "same", {"labels": torch.ones(N).long()}),
    ],
)
def test_errors_of_options_leave_the_head(error, match, options):
    model = network()
    before = model.classifier.weight.clone()
    with pytest.raises(error, match=match):
        fit_head(model, pictures(), **options)
    assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ([], "0 images"),
        (torch.zeros(0, 3, 8, 8), "0 images"),
        ([torch.randn(1, 3, 8, 8)], "1 images"),
        ([{"label": torch.zeros(2)}], "image"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], "float"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "finite"),
        ([()], "image"),
    ],
)
def test_errors_of_images(source, match):
    with pytest.raises(DataError, match=match):
        fit_head(network(), source, teacher=Teacher())


def test_loader_without_labels():
    with pytest.raises(DataError, match="labels"):
        fit_head(network(), [pictures()], labels=True)


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 2), network(bias=False), network(classes=1), "normed"], ids=["plain", "bias", "one", "norm"]
)
def test_errors_of_models(model):
    if model == "normed":
        model = network()
        nn.utils.parametrizations.weight_norm(model.classifier)
    with pytest.raises(ConversionError):
        fit_head(model, pictures(), teacher=Teacher())


def test_dead_channels_and_more_channels_than_images():
    model, teacher, images = network(channels=300), Teacher().eval(), pictures(40)
    with torch.no_grad():
        model.features[1].bias[:50] = -1e3
    report = fit_head(model, images, teacher=teacher)
    assert bool(model.classifier.weight.isfinite().all())
    assert float(model.classifier.weight[:, :50].detach().abs().max()) < 1e-9
    assert 0 <= report.r2_after <= 1
