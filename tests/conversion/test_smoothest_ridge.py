"""``fit_head(ridge="one_se")`` against refits without each row, at every lambda."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import camify
from camify.errors import ConfigError
from camify.model import CAMNet

C, K, N = 10, 4, 60


def network():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.ReLU())
    return CAMNet(features, nn.Linear(C, K)).eval().double()


def pictures():
    labels = torch.arange(N) % K
    return (torch.randn(N, 3, 8, 8) + 1.2 * torch.randn(K, 3, 1, 1)[labels]).double(), labels


def refitted(x, y, lam):
    """Scores of every row by the solution to all others: sum |y - W x - b|^2 + lam |W|^2, b free."""
    scores = np.empty_like(y)
    for row in range(len(x)):
        own, targets = np.delete(x, row, 0), np.delete(y, row, 0)
        mean_x, mean_y = own.mean(0), targets.mean(0)
        z = own - mean_x
        weight = np.linalg.solve(z.T @ z + lam * np.eye(z.shape[1]), z.T @ (targets - mean_y))
        scores[row] = mean_y + (x[row] - mean_x) @ weight
    return scores


@pytest.mark.parametrize("taught", [True, False])
def test_it_is_the_largest_lambda_that_is_as_right_within_one_standard_error(taught):
    model, teacher = network(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, K)).double()
    images, labels = pictures()
    with torch.no_grad():
        x = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
        logits = teacher(images)
    y = (logits - logits.mean(1, keepdim=True)) if taught else nn.functional.one_hot(labels, K).double() - 1 / K
    y = y.numpy()
    z = x - x.mean(0)
    grid = np.logspace(-9, 3, 49) * np.linalg.eigvalsh(z.T @ z)[-1]
    scores = [refitted(x, y, lam) for lam in grid]
    errors = [np.square(y - one).sum() for one in scores]
    truth = y.argmax(1)
    sizes = np.array([(truth == k).sum() for k in np.unique(truth)])
    right = np.array([np.mean([(one.argmax(1) == k)[truth == k].mean() for k in np.unique(truth)]) for one in scores])
    best = int(np.argmin(errors))
    share = (right[best] * N + 1) / (N + 2)
    least = right[best] - (share * (1 - share) * (1 / sizes).sum()) ** 0.5 / len(sizes)
    explained = 1 - np.array(errors) / np.square(y - y.mean(0)).sum()
    good = (right >= least) & (explained >= explained[best] / 2)
    fits = grid[best:][good[best:]]
    target = {"teacher": teacher} if taught else {"labels": labels}
    assert camify.fit_head(model, images, **target).ridge == pytest.approx(grid[best])
    report = camify.fit_head(model, images, ridge="one_se", **target)
    assert report.ridge == pytest.approx(max(fits))
    assert report.ridge > grid[best], "else the test says nothing"
    chosen = scores[list(grid).index(max(fits))]
    assert report.agreement_loo == pytest.approx((chosen.argmax(1) == truth).mean())


@pytest.mark.parametrize(("rare", "shift"), [(8, 0.4), (10, 3.0)])
def test_where_nearly_all_images_are_of_one_class_the_weights_do_not_vanish(rare, shift):
    """There a fit without weights is as right as any, and its maps are empty."""
    torch.manual_seed(3)
    labels = (torch.arange(200) < rare).long()
    images = torch.randn(200, 3, 8, 8) + 0.3 * torch.randn(200, 3, 1, 1) + shift * labels[:, None, None, None]
    best = camify.fit_head(network(), images.double(), labels=labels)
    smooth = camify.fit_head(network(), images.double(), labels=labels, ridge="one_se")
    assert smooth.ridge > best.ridge
    assert smooth.r2_loo >= best.r2_loo / 2 > 0


def test_an_unknown_rule_is_refused():
    images, labels = pictures()
    with pytest.raises(ConfigError, match="one_se"):
        camify.fit_head(network(), images, labels=labels, ridge="smooth")
