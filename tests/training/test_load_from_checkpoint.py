"""``CAMFineTuner.load_from_checkpoint(path)`` needs the checkpoint alone, and runs none of its code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camify
from tests.foreign_code import RunsCode
from tests.training.test_foreign_batches import IMAGES, LABELS, loader, module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*exists and is not empty.*",
    "ignore:The dirpath has changed.*",
)


def fitted(folder, **options):
    """A module after an epoch, and its checkpoint."""
    tuner = module(**options)
    data = loader(torch.utils.data.TensorDataset(IMAGES, LABELS))
    runner = trainer(default_root_dir=folder, enable_checkpointing=True)
    runner.fit(tuner, data, data)
    return tuner, runner.checkpoint_callback.best_model_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("run"), optimizer="sgd", lr=0.02, momentum=0.7, pool="gap")


def test_the_module_is_the_one_that_was_saved(run):
    tuner, path = run
    again = camify.CAMFineTuner.load_from_checkpoint(path)
    assert dict(again.hparams) == dict(tuner.hparams)
    assert again.class_names == tuner.class_names
    assert again.cam_net.certificate == tuner.cam_net.certificate
    state, expected = again.state_dict(), tuner.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert trainer().predict(again, loader(IMAGES))[0]["logits"].shape == (4, 4)
    assert camify.CAMFineTuner.load_from_checkpoint(path, lr=0.5).options.optimization.lr == 0.5


def test_a_run_goes_on_with_it(run, tmp_path):
    _, path = run
    data = loader(torch.utils.data.TensorDataset(IMAGES, LABELS))
    again = camify.CAMFineTuner.load_from_checkpoint(path)
    runner = trainer(max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    runner.fit(again, data, data, ckpt_path=path)
    assert runner.global_step == 4


def test_networks_without_a_record_must_be_given(tmp_path):
    tuner, path = fitted(tmp_path, head="none")
    with pytest.raises(camify.CheckpointError, match=r"head='none'.*model=\.\.\."):
        camify.CAMFineTuner.load_from_checkpoint(path)
    again = camify.CAMFineTuner.load_from_checkpoint(path, model=nn.Sequential(*tuner.model))
    torch.testing.assert_close(again.eval()(IMAGES), tuner.eval()(IMAGES))


def test_other_networks_are_refused_before_anything_is_loaded(run):
    _, path = run
    data = loader(torch.utils.data.TensorDataset(IMAGES, LABELS))
    other = module(classes=5)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    words = r"another network \(model\.classifier\.weight: \(4, 4\) in the checkpoint, \(5, 4\) here"
    for run_it in (
        lambda: trainer(max_epochs=2).fit(other, data, data, ckpt_path=path),
        lambda: trainer().validate(other, data, ckpt_path=path, verbose=False),
        lambda: camify.CAMFineTuner.load_from_checkpoint(path, model=other.cam_net, class_names=list("abcde")),
    ):
        with pytest.raises(camify.CheckpointError, match=words):
            run_it()
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_no_code_of_a_file_runs(run, tmp_path):
    content = torch.load(run[1], weights_only=True)
    torch.save({**content, "extra": RunsCode(tmp_path / "trace")}, tmp_path / "bomb.ckpt")
    with pytest.raises(camify.CheckpointError, match="can run code"):
        camify.CAMFineTuner.load_from_checkpoint(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "trace").exists()
    with pytest.raises(camify.ConfigError, match="plain data"):
        camify.CAMFineTuner.load_from_checkpoint(run[1], weights_only=False)
    for content in ({"state_dict": {}}, {"state_dict": {}, "hyper_parameters": {"lr": 1e-3}}):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(camify.CheckpointError, match="holds"):
            camify.CAMFineTuner.load_from_checkpoint(tmp_path / "other.ckpt")
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(camify.CheckpointError):
            camify.CAMFineTuner.load_from_checkpoint(missing)
