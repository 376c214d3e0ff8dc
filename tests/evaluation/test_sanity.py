"""Sanity checks of maps, against scipy and by hand."""

import copy

import pytest
import torch
from scipy.stats import spearmanr

import camify
from camify.evaluation.evaluation_report import evaluation_tables
from camify.evaluation.sanity import CHECKS, UNCHANGED_FROM
from camify.methods import CAM, METHODS

FAST = {"mosaics": 0, "faithfulness": 0, "pictures": 0}


class Brightness(CAM):
    """A map that shows the image, whatever the network is."""

    def raw_maps(self, forward, targets):
        return torch.nn.functional.avg_pool2d(forward.images.mean(1), 4)


@pytest.fixture
def with_brightness(monkeypatch):
    monkeypatch.setitem(METHODS, "brightness", Brightness)


def test_a_method_that_shows_the_image_is_named(net, root, with_brightness):
    before = copy.deepcopy(net.state_dict())
    made = camify.evaluate(net, root, methods=["cam", "brightness"], sanity=8, **FAST)
    figures = made.sanity
    assert figures.keys() == {"cam", "brightness"}
    for check in CHECKS[1:]:
        assert figures["brightness"][check].value == pytest.approx(1)
        assert figures["brightness"][check].count == 8
    assert figures["brightness"]["another image"].value < UNCHANGED_FROM
    assert figures["cam"]["all layers"].value < UNCHANGED_FROM
    facts = dict(made.facts)["sanity checks"]
    assert "with random all layers the maps of brightness hardly change" in facts
    assert any(table.section == "Sanity checks" and len(table.rows) == 2 for table in evaluation_tables(made))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items()), (
        "the network is left as it was"
    )


def test_with_a_random_last_layer_by_hand(net, root):
    """The same order by chance, put into the classifier by hand; maps and correlations of scipy."""
    made = camify.evaluate(net, root, methods=["cam"], sanity=12, seed=3, **FAST)
    random = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(3)
    for tensor in (random.classifier.weight.data, random.classifier.bias.data):
        tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape))
    values = []
    for path in made.data.images.paths:
        image = camify.data.Preprocessing.of(net.preprocessing).read(path)[None]
        with torch.no_grad():
            logits, maps = net.forward_with_maps(image)
            _, other = random.forward_with_maps(image)
        k = int(logits.argmax())
        one, two = maps[0, k].flatten(), other[0, k].flatten()  # CAM has no ReLU
        if one.max() > one.min() and two.max() > two.min():
            values.append(spearmanr(one, two).statistic)
    figure = made.sanity["cam"]["last layer"]
    assert figure.count == len(values) > 3
    assert figure.value == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_it_is_asked_for_and_has_its_limits(net, root):
    assert camify.evaluate(net, root, **FAST).sanity == {}
    made = camify.evaluate(net, root, limit=1, sanity=5, **FAST)
    assert made.sanity == {}
    assert dict(made.facts)["sanity checks"] == "not measured: there are too few images"
    with pytest.raises(camify.ConfigError, match="sanity=-1 at least 0"):
        camify.evaluate(net, root, sanity=-1, **FAST)
