"""Losses against their formulas, evaluated one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

import camify
from camify.batch import Batch
from camify.task import Task
from camify.training.early_checks import logged_names
from camify.training.losses import (
    Objective,
    alignment_loss,
    balanced_weights,
    classification_loss,
    distillation_loss,
    energy_loss,
    equivariance_loss,
    object_masks,
    smaller_mirrored,
)
from tests.training.conftest import SIZE, BlobData, SmallLegacy, tuner

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_weighted_cross_entropy_by_hand():
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0.5, 2.0, 1.0])
    losses = [-math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    shares = weights[labels].tolist()
    expected = sum(w * loss for w, loss in zip(shares, losses, strict=True)) / sum(shares)
    assert float(classification_loss(logits, labels, class_weights=weights)) == pytest.approx(expected, rel=1e-5)


def test_multilabel_loss_by_hand():
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    positive, smoothing = torch.tensor([3.0, 1.0, 0.5]), 0.2
    total = 0.0
    for n in range(4):
        for k in range(3):
            p = 1 / (1 + math.exp(-float(logits[n, k])))
            target = 0.9 if labels[n, k] else 0.1
            total -= float(positive[k]) * target * math.log(p) + (1 - target) * math.log(1 - p)
    found = classification_loss(
        logits, labels.float(), task=Task.MULTILABEL, class_weights=positive, label_smoothing=smoothing
    )
    assert float(found) == pytest.approx(total / 12, rel=1e-5)


def test_balanced_weights_are_scikit_learns_formula():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    assert balanced_weights(labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    hot = torch.tensor([[1.0, 0], [1, 1], [1, 0], [0, 0]])
    assert balanced_weights(hot, 2, task=Task.MULTILABEL).tolist() == pytest.approx([1 / 3, 3.0])
    with pytest.raises(camify.DataError, match="class 1"):
        balanced_weights(torch.tensor([0, 0, 2]), 3)


def test_distillation_by_hand():
    student, teacher, temperature = torch.randn(3, 4), torch.randn(3, 4), 2.5
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax([v / temperature for v in t]), softmax([v / temperature for v in s])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = temperature**2 * total / 3
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)
    assert float(distillation_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_multilabel_distillation_is_the_divergence_of_every_classs_two_outcomes():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    p, q = (teacher / 2).sigmoid().double(), (student / 2).sigmoid().double()
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(distillation_loss(student, teacher, 2.0, task=Task.MULTILABEL)) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_energy_loss_is_one_minus_the_energy_pointing_game():
    maps, masks = torch.randn(4, 6, 7), torch.rand(4, 6, 7) > 0.6
    masks[2] = False  # not known
    metric = camify.metrics.EnergyPointingGame()
    metric.update(maps[[0, 1, 3]], masks[[0, 1, 3]])
    game = next(float(v) for k, v in metric.compute().items() if k != "count" and "center" not in k)
    assert float(energy_loss(maps, masks)) == pytest.approx(1 - game, rel=1e-5)


def test_energy_loss_without_evidence_or_objects_has_a_finite_gradient():
    maps = torch.stack([-torch.ones(3, 3), torch.ones(3, 3)]).requires_grad_()
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert float(energy_loss(maps.detach(), masks)) == 0.0
    masks[0, 0, 0] = True
    loss = energy_loss(maps, masks)
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_masks_win_over_boxes_and_images_without_either_are_left_out():
    boxes = [torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.zeros(0, 4)]
    images = torch.zeros(2, 3, 3, 3)
    found = object_masks(Batch(images, boxes=boxes))
    assert found[0].sum() == 2
    assert not found[1].any()
    masks = torch.rand(2, 3, 3) > 0.5
    assert torch.equal(object_masks(Batch(images, boxes=boxes, masks=masks)), masks)
    assert object_masks(Batch(images)) is None


def test_the_objective_is_the_weighted_sum_of_its_terms():
    logits, labels, teacher = torch.randn(3, 2), torch.tensor([0, 1, 1]), torch.randn(3, 2)
    maps, masks = torch.randn(3, 2, 4, 4), torch.rand(3, 4, 4) > 0.5
    terms = Objective(distillation=0.3, temperature=2.0, energy=0.7)(
        logits, labels, teacher_NK=teacher, maps_NKHW=maps, masks_NHW=masks
    )
    own = maps[torch.arange(3), labels] - maps.sum(1) / 2
    expected = {
        "classification": classification_loss(logits, labels),
        "distillation": distillation_loss(logits, teacher, 2.0),
        "energy": energy_loss(own, masks),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    total = 0.7 * expected["classification"] + 0.3 * expected["distillation"] + 0.7 * expected["energy"]
    torch.testing.assert_close(terms["loss"], total)


def test_guidance_sees_evidence_relative_to_the_other_classes_as_softmax_does():
    maps, masks, labels = torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4) > 0.5, torch.tensor([2, 0])
    lower = (maps - 100).requires_grad_()  # all of it negative
    objective = Objective(energy=1.0)
    expected = objective(maps.mean((2, 3)), labels, maps_NKHW=maps, masks_NHW=masks)
    found = objective(lower.mean((2, 3)), labels, maps_NKHW=lower, masks_NHW=masks)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-4, atol=1e-4)
    found["energy"].backward()
    assert lower.grad.abs().amax((1, 2, 3)).min() > 0


def mean(values):
    return sum(values) / len(values) if values else 0.0


def test_alignment_by_hand():
    """Kim et al. 2022, cell by cell."""
    features, weights = torch.randn(3, 4, 5, 6).relu(), torch.randn(3, 4)
    features[1, :, 2, 2] = 0  # a cell without features has no direction
    total = 0.0
    for n in range(3):
        cells = [features[n, :, y, x].tolist() for y in range(5) for x in range(6)]
        w, lengths = weights[n].tolist(), [math.hypot(*cell) for cell in cells]
        low, high = min(lengths), max(lengths)
        norms = [(length - low) / (high - low) for length in lengths]
        dots = [sum(a * b for a, b in zip(cell, w, strict=True)) for cell in cells]
        cosines = [d / (v * math.hypot(*w)) if v else 0.0 for d, v in zip(dots, lengths, strict=True)]
        pairs = list(zip(cosines, norms, strict=True))
        direction = mean([s for s, v in pairs if v < 0.2]) - mean([s for s, v in pairs if v > 0.4])
        total += direction + (mean([v for s, v in pairs if s < 0]) - mean([v for s, v in pairs if s > 0])) / 10
    assert float(alignment_loss(features, weights)) == pytest.approx(total / 3, rel=1e-5)


def test_alignment_turns_strong_cells_to_the_weights_and_has_finite_gradients():
    features = torch.zeros(2, 3, 4, 4)
    features[0, 1, :2] = 2.0  # strong, at right angles to the weights
    features[0, 2, 2:] = 0.1
    features[1] = 1.0  # of one length: neither strong nor weak
    features.requires_grad_()
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    alignment_loss(features, weights).backward()
    assert bool(features.grad.isfinite().all())
    assert bool(weights.grad.isfinite().all())
    assert float(features.grad[0, 0, :2].max()) < 0, "a step against the gradient adds the weights' direction"
    assert float(features.grad[0, 0, 2:].min()) > 0
    assert float(alignment_loss(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3))) == 0.0


def test_equivariance_by_hand():
    maps, other = torch.randn(3, 4, 6), torch.randn(3, 2, 3)
    maps[1] = -1.0  # no evidence
    total = 0.0
    for n in range(3):
        peak, small_peak = max(float(maps[n].max()), 0), max(float(other[n].max()), 0)
        for y in range(2):
            for x in range(3):
                left = 2 * (2 - x)  # mirrored; half the grid, half-pixel centers: the mean of two by two
                block = maps[n, 2 * y : 2 * y + 2, left : left + 2].clamp(min=0) / (peak or 1)
                total += abs(float(block.mean()) - max(float(other[n, y, x]), 0) / (small_peak or 1))
    assert float(equivariance_loss(maps, other)) == pytest.approx(total / (3 * 6), rel=1e-5)
    assert float(equivariance_loss(maps, maps.flip(-1))) == 0.0
    assert float(equivariance_loss(maps, 3 * maps.flip(-1))) == pytest.approx(0, abs=1e-6)  # a share of the peak
    assert float(equivariance_loss(maps[:0], other[:0])) == 0.0


def test_smaller_mirrored_images():
    images = torch.rand(2, 3, 8, 6)
    assert torch.equal(smaller_mirrored(images, 1.0), images.flip(-1))
    assert smaller_mirrored(images, 0.5).shape == (2, 3, 4, 3)
    flat = torch.arange(6.0).expand(1, 1, 8, 6)  # a slope stays one, mirrored
    assert bool((smaller_mirrored(flat, 0.5).diff(dim=-1) < 0).all())


def test_the_objective_aligns_and_compares_the_classes_that_an_image_has():
    features, weight = torch.randn(3, 5, 4, 4), torch.randn(2, 5)
    maps = camify.maps.class_maps(features, weight)
    other, several = torch.randn(3, 2, 2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    given = {"maps_NKHW": maps, "features_NCHW": features, "weight_KC": weight, "transformed_NKHW": other}
    labels, rows = torch.tensor([1, 0, 1]), torch.arange(3)
    for task, targets, images, classes in (
        (Task.MULTICLASS, labels, rows, labels),
        (Task.MULTILABEL, several, torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1])),
    ):
        terms = Objective(task, alignment=0.3, equivariance=0.7)(maps.mean((2, 3)), targets, **given)
        shared = [m.mean(1) if task is Task.MULTICLASS else torch.zeros(3, 1, 1) for m in (maps, other)]
        own = [m[images, classes] - s[images] for m, s in zip((maps, other), shared, strict=True)]
        torch.testing.assert_close(terms["alignment"], alignment_loss(features[images], weight[classes]))
        torch.testing.assert_close(terms["equivariance"], equivariance_loss(*own))
        total = terms["classification"] + 0.3 * terms["alignment"] + 0.7 * terms["equivariance"]
        torch.testing.assert_close(terms["loss"], total)


# ------------------------------------------------------------ in training


def test_alignment_and_equivariance_lower_what_they_measure_and_keep_the_identity(data, make_trainer):
    """The terms of two runs that differ in their weights alone, on the same images afterwards."""
    batch = next(iter(data.val_dataloader()))
    images, labels = batch["image"], batch["label"]
    found = []
    for weight in (0.0, 3.0):
        pl.seed_everything(0, verbose=False)
        options = {"align_weight": weight, "equivariance_weight": weight, "freeze_epochs": 0}
        module = tuner(SmallLegacy(), optimizer="adamw", lr=0.005, **options)
        trainer = make_trainer(max_epochs=3)
        trainer.fit(module, data)
        assert ("train/alignment" in trainer.callback_metrics) == ("train/equivariance" in trainer.callback_metrics)
        assert ("train/alignment" in trainer.callback_metrics) == (weight > 0)
        network = module.model.eval()
        with torch.no_grad():
            weight_KC = network.classifier.weight
            features = network.forward_features(images)
            maps = [network.forward_with_maps(some)[1] for some in (images, smaller_mirrored(images, 0.5))]
            own = [camify.maps.select(m, labels) - m.mean(1) for m in maps]
            found.append([float(alignment_loss(features, weight_KC[labels])), float(equivariance_loss(*own))])
        assert network.identity_error(images) < 1e-4
    assert found[1][0] < found[0][0] - 0.1
    assert found[1][1] < 0.8 * found[0][1]


def test_alignment_works_on_cached_features(data, make_trainer):
    found = []
    for cache in ("off", "memory"):
        pl.seed_everything(0, verbose=False)
        module = tuner(SmallLegacy(), align_weight=0.5, freeze_epochs=1, feature_cache=cache)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(module, data)
        found.append([float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "alignment")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_second_look_leaves_running_statistics_alone(data, make_trainer):
    states = []
    for weight in (0.0, 1e-12):
        pl.seed_everything(0, verbose=False)
        module = tuner(SmallLegacy(), equivariance_weight=weight, freeze_epochs=0)
        make_trainer(max_epochs=1, limit_train_batches=1).fit(module, data)
        states.append({k: v for k, v in module.model.state_dict().items() if "running" in k})
    assert states[0]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_the_legacy_teaches_and_stays_as_it_was(legacy, data, make_trainer):
    before, modes = {k: v.clone() for k, v in legacy.state_dict().items()}, [m.training for m in legacy.modules()]
    module = tuner(legacy, teacher="legacy", teacher_weight=1.0, teacher_temperature=1.0, lr=0.05)
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    batch = next(iter(data.train_dataloader()))
    trainer.fit(module, DataLoader([batch], batch_size=None), data.val_dataloader())
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(
        float(trainer.callback_metrics["train/distillation"])
    )
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())
    assert modes == [m.training for m in legacy.modules()]
    assert all(p.requires_grad for p in legacy.parameters())
    assert not any("legacy" in key or "teacher" in key for key in module.state_dict())


def test_distillation_brings_the_student_to_the_legacys_logits(data, make_trainer):
    pl.seed_everything(0, verbose=False)
    teacher = SmallLegacy()
    make_trainer(max_epochs=4).fit(tuner(teacher, head="none", optimizer="adamw", lr=0.005), data)
    teacher.eval()
    images = next(iter(data.val_dataloader()))["image"]
    distances = []
    for options in ({}, {"teacher": "legacy", "teacher_weight": 1.0}):
        pl.seed_everything(0, verbose=False)
        module = tuner(teacher, optimizer="adamw", lr=0.005, **options)
        make_trainer(max_epochs=4).fit(module, data)
        with torch.no_grad():
            distances.append(float(distillation_loss(module.model.eval()(images), teacher(images), 1.0)))
    assert distances[1] < distances[0]


def test_guidance_moves_evidence_into_the_boxes_of_a_tenth_of_the_images(data, make_trainer):
    class FewBoxes(BlobData):
        def train_dataloader(self):
            loader = super().train_dataloader()
            for sample in loader.dataset.samples[5:]:
                sample["boxes"] = torch.zeros(0, 4)
            return loader

    shares = []
    for weight in (0.0, 2.0):
        pl.seed_everything(0, verbose=False)
        module = tuner(SmallLegacy(), box_weight=weight, freeze_epochs=0, optimizer="adamw", lr=0.005)
        trainer = make_trainer(max_epochs=4)
        trainer.fit(module, FewBoxes())
        assert ("train/energy" in trainer.callback_metrics) == (weight > 0)
        game = camify.metrics.EnergyPointingGame()
        with torch.no_grad():
            for batch in data.val_dataloader():
                maps = module.model.eval().forward_with_maps(batch["image"])[1]
                own = camify.maps.upsample(camify.maps.select(maps, batch["label"]), (SIZE, SIZE))
                game.update(own, camify.metrics.functional.box_masks(batch["boxes"], SIZE, SIZE))
        shares.append(next(float(v) for k, v in game.compute().items() if k != "count" and "center" not in k))
    assert shares[1] > shares[0] + 0.05


class TwoAtOnce(Dataset):
    """A red square, a green one, both or neither; labels are multi-hot."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        self.labels = [[index & 1, index >> 1 & 1] for index in range(count)]
        self.images = 0.2 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
        for image, label in zip(self.images, self.labels, strict=True):
            for channel in (0, 1):
                x, y = (int(v) for v in torch.randint(0, SIZE - 12, (2,), generator=generator))
                image[channel, y : y + 12, x : x + 12] += 0.8 * label[channel]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return (self.images[index] - 0.5) / 0.25, torch.tensor(self.labels[index])


def average_precision(scores, labels):
    """Area under precision and recall by a walk down the ranking."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = np.asarray(labels)[order]
    precision = np.cumsum(hits) / (np.arange(len(hits)) + 1)
    return float((precision * hits).sum() / hits.sum())


def test_a_multilabel_run_learns_and_logs_mean_average_precision(legacy, make_trainer):
    pl.seed_everything(0, verbose=False)
    module = tuner(legacy, task="multilabel", class_weights="balanced", optimizer="adamw", lr=0.005)
    trainer = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=5)
    train, val = TwoAtOnce(40), TwoAtOnce(20)
    trainer.fit(module, DataLoader(train, 8, shuffle=True), DataLoader(val, 8))
    with torch.no_grad():
        logits = module.model.eval()(torch.stack([image for image, _ in val]))
    found = [average_precision(logits[:, k].tolist(), [label[k] for label in val.labels]) for k in (0, 1)]
    assert float(trainer.callback_metrics["val/map"]) == pytest.approx(sum(found) / 2, abs=1e-5)
    assert trainer.callback_metrics["val/map"] > 0.9
    assert "val/acc" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "ranking"}, "task='ranking'"),
        ({"class_weights": [1.0]}, "2 numbers"),
        ({"class_weights": "equal"}, "'balanced'"),
        ({"teacher": "legacy", "teacher_weight": 1.5}, "in \\[0, 1\\]"),
        ({"box_weight": -1.0}, "not negative"),
        ({"box_weight": 1.0, "cutmix": 1.0}, "box_weight with cutmix"),
        ({"box_weight": 1.0, "head": "none"}, "without maps"),
        ({"align_weight": 1.0, "equivariance_weight": 1.0, "cutmix": 1.0}, "align_weight and equivariance_weight with"),
        ({"align_weight": 1.0, "head": "none"}, "without maps"),
        ({"align_weight": -0.5}, "align_weight=-0.5"),
        ({"equivariance_scale": 1.5}, "equivariance_scale=1.5"),
        ({"equivariance_weight": 1.0, "feature_cache": "memory"}, "equivariance_weight with feature_cache"),
        ({"equivariance_weight": 1.0, "equivariance_scale": 0.02}, "does not take images of 1x1.*1 mirrors"),
        ({"equivariance_weight": 1.0, "equivariance_scale": 0.05}, "one cell"),
        ({"normalizer": "pas", "percentile": 200.0}, "percentile=200"),
        ({"init": "recast", "head": "gap"}, "keeps the old head"),
        ({"init": "random", "head": "recast"}, "keeps the old head"),
    ],
)
def test_bad_options_are_refused(legacy, options, words):
    with pytest.raises(camify.CamifyError, match=words):
        tuner(legacy, **options)


def test_terms_of_maps_are_known_figures(legacy):
    plain = set(logged_names(tuner(legacy)))
    both = set(logged_names(tuner(legacy, align_weight=0.5, equivariance_weight=1.0)))
    assert both - plain == {"train/classification", "train/alignment", "train/equivariance"}


def test_a_teacher_needs_a_legacy_of_the_same_classes(legacy):
    net = camify.convert(legacy, head="direct", input_size=SIZE)
    with pytest.raises(camify.ConfigError, match="no legacy network"):
        tuner(net, teacher="legacy")


def test_a_recast_start_has_the_legacys_logits(legacy):
    images = torch.randn(2, 3, SIZE, SIZE)
    module = camify.CAMFineTuner(legacy, class_names=["red", "green"], input_size=SIZE, init="recast")
    assert module.hparams["head"] == "recast"
    with torch.no_grad():
        torch.testing.assert_close(module.model.eval()(images), legacy.eval()(images), rtol=1e-4, atol=1e-5)
