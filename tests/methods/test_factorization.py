"""Deep feature factorization: by scikit-learn and the formula, a known factorization, and pytorch-grad-cam's."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import NMF
from torch import nn

from camify import ConfigError, ConversionError
from camify.methods import factorize
from camify.model import CAMNet
from camify.task import Task


def network(*, channels=3, head="gap"):
    torch.manual_seed(1)
    features = [nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU()]
    behind = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    if head == "flat":
        behind = [nn.Flatten(), nn.Linear(6 * 64, 5)]
    return nn.Sequential(*features, *behind).double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def cells_of(maps_NChw):
    return maps_NChw.movedim(1, -1).reshape(-1, maps_NChw.shape[1])


# ---------------------------------------------------------------- by formula and by hand


@pytest.mark.parametrize("head", ["gap", "flat"])
def test_scikit_learn_by_hand(images, head):
    """The activations row by row; the factors scaled and sorted with NumPy; the head run on a full map."""
    net = network(head=head)
    found = factorize(net, images, concepts=3, seed=5)
    with torch.no_grad():
        values = cells_of(net[:2](images)).numpy()
    made = NMF(3, tol=1e-5, max_iter=1000, random_state=5)
    factors, components = made.fit_transform(values / values.max()), made.components_ * values.max()
    for p in range(3):
        peak = factors[:, p].max()
        factors[:, p] /= peak
        components[p] *= peak
    order = sorted(range(3), key=lambda p: -factors[:, p].sum() * components[p].sum())
    maps = torch.from_numpy(factors[:, order]).reshape(3, 8, 8, 3).permute(0, 3, 1, 2)
    vectors = torch.from_numpy(components[order])
    torch.testing.assert_close(found.maps_NPhw, maps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.vectors_PC, vectors, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        logits = net[2:](vectors[:, :, None, None].expand(-1, -1, 8, 8))
    torch.testing.assert_close(found.logits_PK, logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.probabilities_PK, logits.softmax(1))
    assert found.top_classes(2) == logits.topk(2).indices.tolist()
    left = values - sum(np.outer(factors[:, p], components[p]) for p in range(3))
    assert found.relative_error == pytest.approx(np.sqrt((left**2).sum() / (values**2).sum()), rel=1e-9)
    amounts = [factors[:, p].sum() * components[p].sum() for p in order]
    assert found.shares_P.tolist() == pytest.approx([amount / sum(amounts) for amount in amounts])
    assert (found.layer, found.maps_NPhw.shape, found.maps_NPhw.dtype) == ("1", (3, 3, 8, 8), torch.float64)


def known_factors():
    """Each concept has a cell and a channel of its own, so that no other factorization exists; a cell has none."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    vectors = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    for p in range(3):
        maps[0, :, 0, p] = torch.eye(3)[p]
        vectors[:, p] = torch.eye(3)[p] * (3 - p)
    maps[0, :, 3, 3] = 0  # pytorch-grad-cam takes the least value of each channel away: it is 0
    return maps, vectors


def reading_network():
    """The activations are the image."""
    features = nn.Sequential(nn.Conv2d(5, 5, 1, bias=False), nn.ReLU())
    net = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double().eval()
    net[0].weight.data = torch.eye(5, dtype=torch.float64)[:, :, None, None]
    return net


def matched(found, expected):
    """The places of the expected concepts among those that are known, by their vectors' directions."""
    alike = nn.functional.normalize(found, dim=1) @ nn.functional.normalize(expected, dim=1).T
    return alike.argmax(0).tolist()


def test_a_known_factorization_is_recovered():
    maps, vectors = known_factors()
    images = torch.einsum("nphw,pc->nchw", maps, vectors)
    net = reading_network()
    found = factorize(net, images, concepts=3)
    places = matched(found.vectors_PC, vectors)
    assert sorted(places) == [0, 1, 2]
    torch.testing.assert_close(found.maps_NPhw[:, places], maps, rtol=0, atol=2e-3)  # all have the peak 1
    torch.testing.assert_close(found.vectors_PC[places], vectors, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.logits_PK[places], net[4](vectors).detach(), rtol=0, atol=5e-3)
    assert found.relative_error < 1e-3
    exact = torch.einsum("nphw,pc->nchw", found.maps_NPhw, found.vectors_PC)
    torch.testing.assert_close(exact, images, rtol=0, atol=2e-3)


def test_pytorch_grad_cams_concepts(monkeypatch):
    """Theirs factorizes the transposed matrix from another start: the same where only one exists, run to its end."""
    dff = pytest.importorskip("pytorch_grad_cam.feature_factorization.deep_feature_factorization")
    maps, vectors = known_factors()
    images, net = torch.einsum("nphw,pc->nchw", maps, vectors), reading_network()
    monkeypatch.setattr(dff, "NMF", partial(NMF, tol=1e-8, max_iter=20_000))
    concepts_CP, explanations = dff.dff(images.numpy().copy(), n_components=3)
    theirs = torch.from_numpy(concepts_CP.T.copy())
    found = factorize(net, images, concepts=3)
    for place, p in enumerate(matched(theirs, found.vectors_PC)):
        their_map = torch.from_numpy(explanations[:, p].copy())
        peak = their_map.max()
        torch.testing.assert_close(their_map / peak, found.maps_NPhw[:, place], rtol=0, atol=0.01)
        torch.testing.assert_close(theirs[p] * peak, found.vectors_PC[place], rtol=0, atol=0.02)
        logits = net[4](theirs[p] * peak).detach()
        torch.testing.assert_close(logits, found.logits_PK[place], rtol=0, atol=0.02)


# ---------------------------------------------------------------- what there is


@pytest.mark.parametrize("concepts", [1, 6, 9, 20])  # of 6 channels and 3 x 2 x 2 cells
def test_more_concepts_than_the_rank(images, concepts):
    found = factorize(network(), images[..., :4, :4], concepts)
    assert found.maps_NPhw.shape == (3, concepts, 2, 2)
    for values in (found.maps_NPhw, found.vectors_PC, found.logits_PK, found.shares_P):
        assert bool(values.isfinite().all())
    assert float(found.maps_NPhw.min()) >= 0
    assert float(found.vectors_PC.min()) >= 0
    assert float(found.shares_P.sum()) == pytest.approx(1)
    assert found.shares_P.tolist() == sorted(found.shares_P.tolist(), reverse=True)
    assert found.relative_error < (0.9 if concepts == 1 else 1e-3)


def test_activations_of_rank_one():
    net = reading_network()
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64) * torch.rand(5, 1, 1, dtype=torch.float64)
    found = factorize(net, image, 4)
    assert bool(found.maps_NPhw.isfinite().all())
    assert found.relative_error < 1e-3


def test_the_same_seed_gives_the_same_concepts_and_the_network_stays(images):
    net = network().train()
    first, second = (factorize(net, images, 2, seed=3) for _ in range(2))
    assert torch.equal(first.maps_NPhw, second.maps_NPhw)
    assert torch.equal(first.logits_PK, second.logits_PK)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_many_images_are_run_in_chunks(images):
    net = network()
    many = torch.cat([images] * 6)  # 18: more than one chunk
    found, few = factorize(net, many, 2), factorize(net, images, 2)
    torch.testing.assert_close(found.maps_NPhw[15:], few.maps_NPhw, rtol=0, atol=0.02)


class WithToken(nn.Module):
    """A head that reads the image beside the map."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3))) + x.mean((1, 2, 3))[:, None]


def test_a_head_that_reads_more_than_the_map_is_averaged_over_the_images(images):
    torch.manual_seed(2)
    net = WithToken().double().eval()
    found = factorize(net, images, 2, layer="relu")
    expected = net.fc(found.vectors_PC) + images.mean()
    torch.testing.assert_close(found.logits_PK, expected.detach())


def test_a_gray_network_an_own_layer_and_one_logit():
    torch.manual_seed(3)
    features = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, 2, 1), nn.ReLU())
    net = CAMNet(features, nn.Linear(4, 1)).eval()
    net.task, net.class_names = Task.BINARY, ["no", "yes"]
    image = torch.randn(1, 16, 16)
    found = factorize(net, image, 2, layer="features.1")
    assert (found.layer, found.maps_NPhw.shape, found.vectors_PC.shape) == ("features.1", (1, 2, 8, 8), (2, 6))
    assert found.logits_PK.shape == (2, 2)
    assert found.classes.names == ("no", "yes")
    torch.testing.assert_close(found.probabilities_PK.sum(1), torch.ones(2))


def test_what_cannot_be_is_said(images, monkeypatch):
    net = network()
    for wrong in (0, -1, 1.5, True, "4"):
        with pytest.raises(ConfigError, match=r"concepts=.*must be a whole number of at least 1"):
            factorize(net, images, wrong)
    net[0].bias.data -= 1000
    with pytest.raises(ConversionError, match=r"layer 1: no activation .* is positive.*Give another layer"):
        factorize(net, images)
    with pytest.raises(ConfigError, match="give the name of one module"):
        factorize(net, images, layer=["1", "0"])
    with pytest.raises(ConfigError, match="the network has no such module"):
        factorize(network(), images, layer="nowhere")
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ConfigError, match=r"pip install 'camify\[concepts\]'"):
        factorize(network(), images)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "a", True])
def test_a_seed_that_numpy_does_not_take_is_refused_by_name(seed):
    with pytest.raises(ConfigError, match="seed="):
        factorize(nn.Identity(), torch.rand(1, 3, 4, 4), seed=seed)
