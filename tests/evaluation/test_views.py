"""Looks and figures of pictures against camify.explain, one image at a time, and against the metrics."""

from __future__ import annotations

import time

import pytest
import torch

import camify
from camify.errors import ConversionError
from camify.evaluation import views
from camify.evaluation.comparison_summary import Localisation, compared_pairs, groups, mean_agreement, nan_mean
from camify.evaluation.image_figures import findings
from camify.evaluation.scenarios import overlap
from camify.evaluation.timing import interleaved_medians, method_costs
from camify.evaluation.views import look
from camify.metrics import MaxBoxAccuracy
from camify.metrics.functional import centre_gaussian, shifted
from camify.metrics.functional.agreement import correlations


def choose(logits, subjects):
    return logits.argmax(1), logits.argmin(1)


@pytest.fixture
def looks(contenders, subjects):
    return look(contenders, subjects, choose)


@pytest.fixture
def inputs(contenders, subjects):
    return torch.stack([subject.input(contenders[0].preprocessing) for subject in subjects])


def test_columns_are_what_the_networks_can_serve(looks, contenders):
    assert [str(column) for column in looks.columns] == [
        "legacy: gradcam", "legacy: gradcam++", "legacy: layercam", "legacy: reciprocam",
        "converted: cam", "converted: gradcam", "converted: gradcam++", "converted: layercam", "converted: reciprocam",
    ]  # fmt: skip
    assert "camify.convert" in contenders[0].unserved["cam"]
    assert not contenders[1].unserved


@pytest.mark.filterwarnings("ignore::camify.errors.ConstantMapWarning")
def test_heats_are_those_of_explain(looks, contenders, inputs):
    models = {contender.name: contender.model for contender in contenders}
    for index, column in enumerate(looks.columns):
        for view, images, targets in (
            ("overall", inputs, looks.targets),
            ("class not present", inputs, looks.absent),
            ("mirrored input", inputs.flip(-1), looks.targets),
            ("shifted input", shifted(inputs), looks.targets),
        ):
            expected = camify.explain(models[column.model], images, method=column.method, targets=targets)
            if view == "mirrored input":
                expected = expected.flip(-1)
            torch.testing.assert_close(looks.heats[view][index], expected, rtol=1e-3, atol=1e-4)


def test_the_classes_are_the_first_networks_for_all(looks, contenders, inputs):
    with torch.no_grad():
        logits = contenders[0].model(inputs)
        other = contenders[1].model(inputs)
    assert looks.targets.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(looks.logits[1, :, 0], other.gather(1, logits.argmax(1, keepdim=True))[:, 0])
    torch.testing.assert_close(looks.probabilities[0, :, 0], logits.softmax(1).amax(1))


def test_one_forward_for_all_methods_and_both_classes(contenders, subjects, monkeypatch):
    seen = []
    observe = views.observe
    monkeypatch.setattr(views, "observe", lambda model, *a, **k: (seen.append(model), observe(model, *a, **k))[1])
    look(contenders, subjects, choose)
    assert len(seen) == 3 * len(contenders)  # as it is, mirrored, shifted


def test_masked_probabilities_are_those_of_masked_images(looks, contenders, inputs):
    models = {contender.name: contender.model for contender in contenders}
    for index, column in enumerate(looks.columns):
        masked = inputs * looks.heats["overall"][index][:, None]
        with torch.no_grad():
            expected = models[column.model](masked).softmax(1).gather(1, looks.targets[:, None])[:, 0]
        torch.testing.assert_close(looks.masked[index], expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        blob = contenders[0].model(inputs * centre_gaussian(96, 96)).softmax(1)
    torch.testing.assert_close(looks.centred[0], blob.gather(1, looks.targets[:, None])[:, 0])


def test_findings_of_a_picture(looks, subjects):
    found = findings(looks, subjects)
    assert [finding.scenario for finding in found] == [
        "single object", "several instances", "small object", "boxes unknown", "single object",
    ]  # fmt: skip
    first = found[0]
    heats = looks.heats["overall"][:, 0]
    torch.testing.assert_close(first.agreement["overall"]["pearson"], correlations(heats))
    own = torch.cat([looks.probabilities[0, :1, 0].expand(4), looks.probabilities[1, :1, 0].expand(5)]).double()
    drop = ((own - looks.masked[:, 0]).clamp_min(0) / own).tolist()
    assert first.values["drop"].tolist() == pytest.approx(drop, rel=1e-5)
    pair = [part.flatten().double() for part in overlap(heats[0], looks.heats["shifted input"][0, 0])]
    assert float(first.values["shifted"][0]) == pytest.approx(float(torch.corrcoef(torch.stack(pair))[0, 1]), abs=1e-6)
    assert found[3].values["pointing"].isnan().all()
    assert found[3].boxes is None


def test_gradcam_is_cam_before_the_relu_on_a_converted_network(looks, subjects):
    names = [str(column) for column in looks.columns]
    i, j = names.index("converted: cam"), names.index("converted: gradcam")
    for finding in findings(looks, subjects):
        assert float(finding.agreement["overall"]["raw"][i, j]) == pytest.approx(1, abs=1e-6)


def test_localisation_is_the_metrics(looks, subjects):
    found = findings(looks, subjects)
    localisation = Localisation(looks.columns)
    localisation.update(looks, found)
    rows = {row.group: row for row in localisation.compute()}
    assert {name: row.count for name, row in rows.items()} == {
        "overall": 4, "single object": 2, "several instances": 1, "small object": 1,
    }  # fmt: skip
    for index in range(len(looks.columns)):
        metric = MaxBoxAccuracy(version=1)
        boxes = [torch.zeros(0, 4) if finding.boxes is None else finding.boxes for finding in found]
        metric.update(looks.heats["overall"][index], boxes)
        expected = metric.compute()
        assert rows["overall"].accuracies[index] == pytest.approx(float(expected["max_box_acc"]))
        assert rows["overall"].thresholds[index] == pytest.approx(float(expected["best_threshold"]))
        assert rows["overall"].centre_accuracy == pytest.approx(float(expected["centre_box_acc"]))
    total = sum(rows[name].accuracies[0] * rows[name].count for name in rows if name != "overall")
    assert total == pytest.approx(rows["overall"].accuracies[0] * 4)  # one threshold for all scenarios
    assert Localisation(looks.columns).compute() == []


def test_groups_and_means(looks, subjects):
    found = findings(looks, subjects)
    split = groups(found)
    assert {name: len(those) for name, (_, those) in split.items()} == {
        "overall": 5, "single object": 2, "several instances": 1, "small object": 1, "boxes unknown": 1,
        "class not present": 5, "mirrored input": 5, "shifted input": 5,
    }  # fmt: skip
    mean = mean_agreement(found, "overall")["top_iou"]
    by_hand = torch.stack([finding.agreement["overall"]["top_iou"] for finding in found]).nanmean(0)
    torch.testing.assert_close(mean.mean, by_hand, equal_nan=True)
    part = nan_mean([torch.tensor([1.0, torch.nan]), torch.tensor([3.0, 5.0]), torch.tensor([5.0, torch.nan])])
    assert part.mean.tolist() == [3, 5]
    assert part.count.tolist() == [3, 1]


def test_pairs_share_a_network_or_a_method(looks):
    pairs = compared_pairs(looks.columns)
    assert len(pairs) == 6 + 10 + 4  # legacy, converted, the four methods of both
    assert all(i < j for i, j in pairs)


def test_a_method_that_nobody_serves_is_an_error(contenders, subjects):
    legacy = contenders[0]
    legacy.methods = {"cam": legacy.methods["cam"]}
    with pytest.raises(ConversionError, match=r"no network can serve one.*camify\.convert"):
        look([legacy], subjects, choose)


def test_medians_are_of_runs_in_turns():
    order = []
    medians = interleaved_medians(
        {"slow": lambda: (order.append("slow"), time.sleep(0.004)), "fast": lambda: order.append("fast")}, repeats=5
    )
    assert order[:4] == ["slow", "fast", "slow", "fast"]
    assert medians["slow"][1] == medians["fast"][1] == 5
    assert medians["slow"][0] >= 0.004 > medians["fast"][0]


def test_a_slow_run_is_repeated_less_often():
    count = {"slow": 0, "fast": 0}

    def slow():
        count["slow"] += 1
        time.sleep(0.03)

    def fast():
        count["fast"] += 1

    medians = interleaved_medians({"slow": slow, "fast": fast}, repeats=7, budget=0.04)
    assert count == {"slow": 2, "fast": 8}
    assert medians["slow"][1] == 1


def test_costs_name_every_served_method(looks, contenders, inputs):
    costs = method_costs(contenders[0], inputs, looks.targets, repeats=1)
    assert list(costs["ratios"]) == ["gradcam", "gradcam++", "layercam", "reciprocam", "all of them together"]
    assert all(ratio > 0 for ratio in costs["ratios"].values())
    assert costs["batch"] == 5
