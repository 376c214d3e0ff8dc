"""The demo: all scenarios occur, and it says what to do where its weights are missing."""

from __future__ import annotations

import pytest
import torch

from camify.errors import CheckpointError
from camify.evaluation import demo
from camify.evaluation.demo import DEMO_METHODS, demo_images, demo_networks
from camify.evaluation.scenarios import scenario_of


def test_all_scenarios_occur_and_the_legacy_network_sees_every_class(monkeypatch):
    monkeypatch.setattr(demo, "_TRAINING_SCENES", 60)
    pictures = demo_images()
    scenarios = [scenario_of(picture.boxes_at(96, 96), 96, 96) for picture in pictures]
    assert {name: scenarios.count(name) for name in set(scenarios)} == {
        "single object": 6, "several instances": 5, "small object": 4,
    }  # fmt: skip
    legacy, converted = demo_networks(DEMO_METHODS)
    images = torch.stack([picture.input(legacy.preprocessing) for picture in pictures])
    targets = [picture.target for picture in pictures]
    with torch.no_grad():
        assert legacy.model.eval()(images).argmax(1).tolist() == targets
        agreement = (converted.model.eval()(images).argmax(1) == torch.tensor(targets)).float().mean()
    assert agreement > 0.7
    assert legacy.titles == converted.titles


def test_missing_weights_are_said_with_what_to_do():
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such file"):
        demo_networks(DEMO_METHODS, "nowhere.safetensors")
