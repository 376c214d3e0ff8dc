"""What is measured when methods are compared, against camify.explain, one image at a time, and against the metrics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import camify
from camify.errors import ConversionError
from camify.evaluation import network as network_module
from camify.evaluation import timing
from camify.evaluation.comparison_figures import (
    compare_batch,
    compared_pairs,
    groups,
    image_figures,
    localization_rows,
    mean_agreement,
    nan_mean,
)
from camify.evaluation.timing import interleaved_medians, method_costs
from camify.metrics import MaxBoxAccuracy, PointingGame
from camify.metrics.functional import center_gaussian, correlations, shifted


def choose(forward, images):
    return forward.logits.argmax(1), forward.logits.argmin(1)


@pytest.fixture
def batch(explained, pictures):
    return compare_batch(explained, pictures, choose)


@pytest.fixture
def inputs(explained, pictures):
    return torch.stack([picture.input(explained[0].preprocessing) for picture in pictures])


def test_columns_are_what_the_networks_can_serve(batch, explained):
    assert [str(column) for column in batch.columns] == [
        "legacy: gradcam", "legacy: gradcam++", "legacy: layercam", "legacy: reciprocam",
        "converted: cam", "converted: gradcam", "converted: gradcam++", "converted: layercam", "converted: reciprocam",
    ]  # fmt: skip
    assert "camify.convert" in explained[0].unserved["cam"]
    assert not explained[1].unserved


@pytest.mark.filterwarnings("ignore::camify.errors.ConstantMapWarning")
def test_heats_are_those_of_explain(batch, explained, inputs):
    models = {network.name: network.model for network in explained}
    for index, column in enumerate(batch.columns):
        for view, images, targets in (
            ("overall", inputs, batch.targets),
            ("class not present", inputs, batch.absent),
            ("mirrored input", inputs.flip(-1), batch.targets),
            ("shifted input", shifted(inputs), batch.targets),
        ):
            expected = camify.explain(models[column.model], images, method=column.method, targets=targets)
            torch.testing.assert_close(batch.heats[view][index], expected, rtol=1e-3, atol=1e-4)


def test_the_classes_are_the_first_networks_for_all(batch, explained, inputs):
    with torch.no_grad():
        logits = explained[0].model(inputs)
        other = explained[1].model(inputs)
    assert batch.targets.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(batch.logits[1, :, 0], other.gather(1, logits.argmax(1, keepdim=True))[:, 0])
    torch.testing.assert_close(batch.probabilities[0, :, 0], logits.softmax(1).amax(1))


def test_one_forward_for_all_methods_and_both_classes(explained, pictures, monkeypatch):
    models, observe = [], network_module.observe
    monkeypatch.setattr(
        network_module, "observe", lambda model, *a, **k: (models.append(model), observe(model, *a, **k))[1]
    )
    compare_batch(explained, pictures, choose)
    assert len(models) == 3 * len(explained)  # as it is, mirrored, shifted


def test_masked_probabilities_are_those_of_masked_images(batch, explained, inputs):
    models = {network.name: network.model for network in explained}
    for index, column in enumerate(batch.columns):
        masked = inputs * batch.heats["overall"][index][:, None]
        with torch.no_grad():
            expected = models[column.model](masked).softmax(1).gather(1, batch.targets[:, None])[:, 0]
        torch.testing.assert_close(batch.masked[index], expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        blob = explained[0].model(inputs * center_gaussian(96, 96)).softmax(1)
    torch.testing.assert_close(batch.centered[0], blob.gather(1, batch.targets[:, None])[:, 0])


def test_figures_of_a_picture(batch, pictures):
    found = image_figures(batch, pictures)
    assert [one.scenario for one in found] == [
        "single object", "several instances", "small object", "boxes unknown", "single object",
    ]  # fmt: skip
    first = found[0]
    heats = batch.heats["overall"][:, 0]
    torch.testing.assert_close(first.agreement["overall"]["pearson"], correlations(heats))
    own = torch.cat([batch.probabilities[0, :1, 0].expand(4), batch.probabilities[1, :1, 0].expand(5)]).double()
    drop = ((own - batch.masked[:, 0]).clamp_min(0) / own).tolist()
    assert first.values["drop"].tolist() == pytest.approx(drop, rel=1e-5)
    moved, mirrored = batch.heats["shifted input"][0, 0], batch.heats["mirrored input"][0, 0]
    pair = torch.stack([heats[0][:-12, :-12].flatten(), moved[12:, 12:].flatten()]).double()
    assert float(first.values["shift"][0]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)
    pair = torch.stack([heats[0].flatten(), mirrored.flip(-1).flatten()]).double()
    assert float(first.values["flip"][0]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)
    assert found[3].values["pointing_15px"].isnan().all()
    for index in range(len(batch.columns)):
        metric = PointingGame()
        metric.update(heats[index][None], [first.boxes])
        assert float(first.values["pointing_15px"][index]) == float(metric.compute()["accuracy"])
    assert found[3].boxes is None


def test_gradcam_is_cam_before_the_relu_on_a_converted_network(batch, pictures):
    names = [str(column) for column in batch.columns]
    i, j = names.index("converted: cam"), names.index("converted: gradcam")
    for one in image_figures(batch, pictures):
        assert float(one.agreement["overall"]["raw"][i, j]) == pytest.approx(1, abs=1e-6)


def test_localization_is_the_metrics(batch, pictures):
    found = image_figures(batch, pictures)
    rows = {row.group: row for row in localization_rows(found)}
    assert {name: row.count for name, row in rows.items()} == {
        "overall": 4, "single object": 2, "several instances": 1, "small object": 1,
    }  # fmt: skip
    for index in range(len(batch.columns)):
        metric = MaxBoxAccuracy(version=1)
        boxes = [torch.zeros(0, 4) if one.boxes is None else one.boxes for one in found]
        metric.update(batch.heats["overall"][index], boxes)
        expected = metric.compute()
        assert rows["overall"].accuracies[index] == pytest.approx(float(expected["max_box_acc"]))
        assert rows["overall"].thresholds[index] == pytest.approx(float(expected["best_threshold"]))
        assert rows["overall"].center_accuracy == pytest.approx(float(expected["center_box_acc"]))
    total = sum(rows[name].accuracies[0] * rows[name].count for name in rows if name != "overall")
    assert total == pytest.approx(rows["overall"].accuracies[0] * 4)  # one threshold for all scenarios
    assert localization_rows(found[3:4]) == []


def test_groups_and_means(batch, pictures):
    found = image_figures(batch, pictures)
    split = groups(found)
    assert {name: len(those) for name, (_, those) in split.items()} == {
        "overall": 5, "single object": 2, "several instances": 1, "small object": 1, "boxes unknown": 1,
        "class not present": 5, "mirrored input": 5, "shifted input": 5,
    }  # fmt: skip
    mean = mean_agreement(found, "overall")["top_iou"]
    by_hand = torch.stack([one.agreement["overall"]["top_iou"] for one in found]).nanmean(0)
    torch.testing.assert_close(mean.mean, by_hand, equal_nan=True)
    part = nan_mean([torch.tensor([1.0, torch.nan]), torch.tensor([3.0, 5.0]), torch.tensor([5.0, torch.nan])])
    assert part.mean.tolist() == [3, 5]
    assert part.count.tolist() == [3, 1]


def test_pairs_share_a_network_or_a_method(batch):
    pairs = compared_pairs(batch.columns)
    assert len(pairs) == 6 + 10 + 4  # legacy, converted, the four methods of both
    assert all(i < j for i, j in pairs)


def test_a_method_that_nobody_serves_is_an_error(explained, pictures):
    legacy = explained[0]
    legacy.methods = {"cam": legacy.methods["cam"]}
    with pytest.raises(ConversionError, match=r"no network supports one.*camify\.convert"):
        compare_batch([legacy], pictures, choose)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test lets them."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def let_pass(seconds):
        now[0] += seconds

    return let_pass


def test_medians_are_of_runs_in_turns(clock):
    order = []
    durations = iter([9.0, 0.004, 0.008, 0.005, 0.007, 0.006])
    medians = interleaved_medians(
        {"slow": lambda: (order.append("slow"), clock(next(durations))), "fast": lambda: order.append("fast")},
        repeats=5, budget=100,
    )  # fmt: skip
    assert order == ["slow", "fast"] * 6
    assert medians["slow"] == (pytest.approx(0.006), 5), "the warm-up does not count"
    assert medians["fast"] == (0, 5)


def test_a_slow_run_is_repeated_less_often(clock):
    count = {"slow": 0, "fast": 0}

    def slow():
        count["slow"] += 1
        clock(0.03)

    def fast():
        count["fast"] += 1

    medians = interleaved_medians({"slow": slow, "fast": fast}, repeats=7, budget=0.04)
    assert count == {"slow": 2, "fast": 8}
    assert medians["slow"] == (pytest.approx(0.03), 1)


def test_costs_name_every_served_method(batch, explained, inputs):
    costs = method_costs(explained[0], inputs, batch.targets, repeats=1)
    assert list(costs["ratios"]) == ["gradcam", "gradcam++", "layercam", "reciprocam", "all of them together"]
    assert all(ratio > 0 for ratio in costs["ratios"].values())
    assert costs["batch"] == 5
