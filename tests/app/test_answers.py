"""What the page shows is what ``camify.explain``, ``forward_with_maps`` and ``predict_boxes`` give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import nn

import camify
from camify.app.answers import MapChoice, agreement, map_choices, rule_of
from camify.boxes import DEFAULT_RULE, BoxRule
from camify.errors import ConfigError, DataError
from camify.model import CAMNet

from .conftest import SIZE, Answers, answers_of


class Calls:
    """How often a network's features ran."""

    def __init__(self, model):
        self.count = 0
        model.features.register_forward_hook(self)

    def __call__(self, *_):
        self.count += 1


@pytest.fixture
def answers(converted):
    return Answers(converted)


@pytest.fixture
def inputs(converted, picture):
    return converted.preprocessing.read(picture)[None]


@pytest.mark.parametrize("kind", ["plain", "contrast", "object"])
def test_maps_of_every_kind_are_the_network_s_own(answers, picture, inputs, kind):
    logits, maps = answers.network.model.forward_with_maps(inputs, kind=kind)
    answer = answers.of(picture)
    for target in range(3):
        view = answer.view(MapChoice("cam", kind), target)
        torch.testing.assert_close(view.raw_hw, maps[0, target].detach(), atol=1e-4, rtol=1e-4)
        assert view.target == target
    torch.testing.assert_close(answer.logits, logits[0].detach())
    torch.testing.assert_close(answer.probabilities, torch.softmax(logits[0].detach(), 0))
    assert answer.top() == logits[0].argsort(descending=True).tolist()


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "reciprocam"])
def test_maps_of_every_method_are_those_of_explain_also_after_the_pass(legacy, picture, method):
    images = legacy.preprocessing.read(picture)[None]
    answer = Answers(legacy).of(picture)
    for target in (2, 0):
        raw = camify.explain(legacy.model, images, method=method, targets=target, normalize=None, size=None)
        view = answer.view(MapChoice(method), target)
        torch.testing.assert_close(view.raw_hw, raw[0])
        assert view.identity is None


def test_boxes_are_those_of_predict_boxes_in_pixels_of_the_file(answers, picture, inputs):
    model, answer = answers.network.model, answers.of(picture)
    for target in range(3):
        view = answer.view(MapChoice("cam", "object"), target)
        expected = model.predict_boxes(inputs, torch.tensor([target]))[0].numpy()
        np.testing.assert_allclose(view.boxes, expected * ([180 / SIZE, 60 / SIZE] * 2), rtol=1e-5)
        assert view.as_the_rule_says
        assert view.threshold == 0.4237


@pytest.mark.parametrize("flip", [False, True])
def test_the_rule_s_own_maps_are_cut_where_it_asks_for_them(networks, picture, flip):
    model = networks[1]
    rule, before = BoxRule("minmax", threshold=0.6, clamp_weights=True, flip=flip), model.box_rule
    model.box_rule = rule
    try:
        answers = answers_of(model)
        calls = Calls(model)
        answer = answers.of(picture)
        views = [answer.view(MapChoice("cam"), target, threshold) for target in range(3) for threshold in (None, 0.3)]
        assert calls.count == 1 + flip
        images = answers.network.preprocessing.read(picture)[None]
        expected = model.predict_boxes(images, torch.tensor([2]))[0].numpy()
        np.testing.assert_allclose(views[4].boxes, expected * ([180 / SIZE, 60 / SIZE] * 2), rtol=1e-5)
    finally:
        model.box_rule = before


def test_a_threshold_cuts_the_normalized_map_as_the_formula_says(answers, picture):
    view = answers.of(picture).view(MapChoice("gradcam"), 1, 0.7)
    heat = nn.functional.interpolate(view.raw_hw.relu()[None, None], size=(SIZE, SIZE), mode="bilinear")[0, 0].numpy()
    low, high = heat.min(), max(np.percentile(heat, 90), 1e-9)  # PaS 90, the default rule's normalizer
    reached = (heat - low) / (high - low) >= 0.7
    assert view.region_share == pytest.approx(reached.mean(), abs=2e-3)
    assert not view.as_the_rule_says
    share = [answers.of(picture).view(MapChoice("gradcam"), 1, step).region_share for step in (0.2, 0.5, 0.9)]
    assert share == sorted(share, reverse=True)
    assert share[0] > share[-1]


def test_a_slider_within_half_a_step_is_the_rule_s_own_threshold(answers, picture):
    answer, choice = answers.of(picture), MapChoice("cam", "object")
    assert answer.view(choice, 0, 0.42).as_the_rule_says
    assert not answer.view(choice, 0, 0.43).as_the_rule_says
    otsu = answer.view(choice, 0, "otsu")
    assert not otsu.as_the_rule_says
    assert answer.view(choice, 0, otsu.threshold).region_share == otsu.region_share


def test_the_network_runs_once_for_a_picture(answers, picture):
    calls = Calls(answers.network.model)
    for choice in answers.choices.values():
        if not answers.network.methods[choice.method].further_forwards(1):  # else it is defined by further runs
            for target, threshold in ((0, None), (0, 0.2), (0, "otsu"), (1, None), (2, None)):
                answers.of(picture).view(choice, target, threshold, "viridis")
    assert calls.count == 1


def test_of_the_last_pictures_only_a_few_are_kept(answers, tmp_path):
    calls, files = Calls(answers.network.model), []
    for shade in range(4):
        files.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (9, 9), (shade, 0, shade)).save(files[-1])
    for file in [*files, files[-1], files[0]]:  # the first one was forgotten
        answers.of(file)
    assert calls.count == 5


def test_the_identity_holds_and_other_kinds_differ_by_what_all_classes_share(answers, picture):
    answer = answers.of(picture)
    for target in range(3):
        identity = answer.view(MapChoice("cam"), target).identity
        assert identity.mean + identity.bias == pytest.approx(float(answer.logits[target]), abs=1e-4)
        assert identity.rest == pytest.approx(0, abs=1e-4)
    for kind in ("contrast", "object"):
        rests = [answer.view(MapChoice("cam", kind), target).identity.rest for target in range(3)]
        assert rests == pytest.approx([rests[0]] * 3, abs=1e-3)
        assert abs(rests[0]) > 1e-2


def test_pictures_keep_their_aspect_and_heat_lies_where_the_map_is(picture):
    class First(nn.Module):  # the map is the red channel's
        def forward(self, x):
            return nn.functional.avg_pool2d(x[:, :1], 16)

    classifier = nn.Linear(1, 2, bias=False)
    nn.init.constant_(classifier.weight, 1.0)
    model = CAMNet(First(), classifier).eval()
    view = answers_of(model).of(picture).view(MapChoice("cam"), 0, 0.9)
    assert view.picture.size == (768, 256)
    (x0, y0, x1, y1), *_ = view.boxes.tolist()
    assert 0 <= x0 < x1 <= 80  # red lies in the left third of the upper half
    assert 0 <= y0 < y1 <= 45


def test_what_a_phone_wrote_sideways_is_turned_upright(answers, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "phone.jpg", exif=exif)
    answer = answers.of(tmp_path / "phone.jpg")
    assert answer.size == (40, 20)
    assert "of one color" in answer.notes[0]


@pytest.mark.parametrize(
    "content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_other_files_are_refused_by_name_alone(answers, tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(DataError, match=r"^odd\.png: cannot be read as an image"):
        answers.of(tmp_path / "odd.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(answers, tmp_path, monkeypatch):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"^large\.png: .*2500 pixels"):
        answers.of(tmp_path / "large.png")


def test_a_class_that_is_not_there_is_refused(answers, picture):
    with pytest.raises(ConfigError, match=r"classes 0\.\.2"):
        answers.of(picture).view(MapChoice("cam"), 3)


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 3), ("binary", 1)])
def test_independent_labels_and_one_logit_have_sigmoids(picture, task, classes):
    torch.manual_seed(1)
    model = CAMNet(nn.Conv2d(3, 4, 8, 8), nn.Linear(4, classes)).eval()
    model.task = task
    answers = answers_of(model, ("cam", "gradcam"))
    answer = answers.of(picture)
    logits = model(answers.network.preprocessing.read(picture)[None])[0].detach()
    expected = torch.sigmoid(logits if classes > 1 else torch.cat([logits, -logits]))
    torch.testing.assert_close(answer.probabilities, expected)
    kinds = {choice.kind for choice in answers.choices.values()}
    assert kinds == ({"plain"} if task == "multilabel" else {"plain", "contrast"})
    other = answer.view(MapChoice("cam"), 1)
    if task == "binary":  # the map of the absence is the map of the class, negated
        torch.testing.assert_close(other.raw_hw, -answer.view(MapChoice("cam"), 0).raw_hw)
        assert answer.predicted == 0


def test_the_maps_on_offer_begin_with_what_the_rule_cuts(converted, legacy):
    choices = map_choices(converted)
    assert choices[0] == MapChoice("cam", "object")
    assert {choice.kind for choice in choices if choice.method == "cam"} == {"plain", "contrast", "object"}
    assert all(choice.kind == "plain" for choice in map_choices(legacy))
    assert rule_of(converted, choices[0]) == converted.model.box_rule
    assert rule_of(converted, MapChoice("gradcam")) == DEFAULT_RULE
    assert rule_of(converted, MapChoice("cam", "contrast")).kind == "contrast"


def test_agreement_of_two_networks(answers, legacy, picture):
    first, second = answers.of(picture), Answers(legacy).of(picture)
    view, other = first.view(MapChoice("cam"), 0), second.view(MapChoice("gradcam"), 0)
    alike = agreement((first, first), (view, view))
    assert (alike.same_class, alike.correlation, alike.box_iou) == (True, pytest.approx(1), pytest.approx(1))
    figures = agreement((first, second), (view, other))
    maps = [
        nn.functional.interpolate(one.raw_hw[None, None], size=(SIZE, SIZE), mode="bilinear").flatten().numpy()
        for one in (view, other)
    ]
    ranks = [rankdata(values) for values in maps]
    assert figures.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    nothing = first.view(MapChoice("cam"), 0, 1.0)
    nothing = type(nothing)(**{**vars(nothing), "boxes": np.zeros((0, 4)), "raw_hw": torch.zeros(2, 2)})
    empty = agreement((first, first), (view, nothing))
    assert math.isnan(empty.correlation)
    assert math.isnan(empty.box_iou)
