"""Weights of the features alone: a new head can be put on them, and nothing uses the random one."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

import camify
from camify.cli.commands import main
from camify.conversion.readiness import check
from camify.errors import CheckpointError, ConversionError
from camify.sources import resolve, torchvision_models

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights"
HEADS = {"vgg11": "classifier.", "resnet18": "fc.", "mobilenet_v3_small": "classifier.", "squeezenet1_1": "classifier."}


def features_of(name, path, half=False):
    torch.manual_seed(5)
    with torch.device("meta" if name == "vgg11" else "cpu"):  # whose head takes seconds to draw, and is left out
        state = torchvision.models.get_model(name, weights=None).state_dict()
    state = {key: value for key, value in state.items() if not key.startswith(HEADS[name])}
    state = {key: torch.rand(value.shape) if value.is_meta else value for key, value in state.items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


@pytest.fixture
def resnet(tmp_path):
    features_of("resnet18", tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "half"),
    [
        pytest.param("vgg11", True, marks=pytest.mark.slow), ("resnet18", False), ("resnet18", True),
        ("mobilenet_v3_small", True), ("squeezenet1_1", False),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_file_of_features_alone_finds_its_network(tmp_path, name, half):
    path = tmp_path / "w.safetensors"
    state = features_of(name, path, half)
    for text in (str(path), f"torchvision/{name}@{path}"):
        source = resolve(text)
        assert source.name == f"torchvision/{name}@{path}"
        assert source.headless
        assert source.class_names is None
        assert source.task is None
        found = source.model.state_dict()
        assert set(source.missing_head) == found.keys() - state.keys()
        assert all(key.startswith(HEADS[name]) for key in source.missing_head)
        assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in state.items())
        assert any("features alone" in note and source.missing_head[0] in note for note in source.notes)


@pytest.mark.parametrize("head", ["gap", "direct"])
@pytest.mark.slow
def test_a_new_head_is_put_on_them(tmp_path, resnet, head):
    net = camify.convert(resnet, head=head, class_names=["a", "b"], head_channels=8 if head == "gap" else None,
                         input_size=64, seed=0)  # fmt: skip
    assert net.class_names == ["a", "b"]
    assert any("features alone" in note for note in net.certificate.notes)
    legacy = resolve(resnet).model
    assumed = camify.convert(resnet, head="direct", input_size=64, seed=0)
    assert assumed.num_classes == 1000
    assert any("is assumed: 1000" in note for note in assumed.certificate.notes)
    assert assumed.certificate.legacy_error is None  # no head was kept
    images = torch.ones(1, 3, 64, 64)
    legacy_features = torch.nn.Sequential(*list(legacy.children())[:-2])
    torch.testing.assert_close(assumed.features(images), legacy_features(images))


@pytest.mark.slow
def test_fine_tuning_puts_a_new_head_on_them_and_has_no_legacy_to_compare(resnet):
    names = [f"class {index}" for index in range(1000)]  # as many as the architecture has: no reason to take it for one
    module = camify.CAMFineTuner(resnet, class_names=names, head="direct", input_size=64)
    assert module.legacy is None
    assert torch.equal(module.model.features(torch.ones(1, 3, 64, 64)).isfinite().all(), torch.tensor(True))
    for options in ({"head": "recast"}, {"head": "none"}, {"init": "recast"}):
        with pytest.raises(ConversionError, match="the features alone"):
            camify.CAMFineTuner(resnet, class_names=names, input_size=64, **options)


@pytest.mark.slow
def test_what_would_use_the_head_refuses_before_work_starts(tmp_path, resnet, capsys):
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    Image.new("RGB", (8, 8)).save(image)
    with pytest.raises(ConversionError, match=r"head='recast' needs the head, .*camify convert .*--head gap"):
        camify.convert(resnet, head="recast", input_size=64)
    for command in (
        ["explain", image, "--model", resnet, "--out", tmp_path / "out"],
        ["compare", image, "--model", resnet, "--out", tmp_path / "out"],
        ["evaluate", "--model", resnet, "--data", image.parent, "--out", tmp_path / "out"],
    ):
        with pytest.raises(SystemExit) as left:
            main([str(part) for part in command])
        assert left.value.code == 2
        assert "explaining it needs the head, and these weights hold the features alone" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    for text in (resnet, f"torchvision/resnet18@{resnet}"):
        inspection = camify.inspect(text, input_size=64)
        assert not inspection.cam_ready
        assert inspection.verdict == "convertible"
        assert "no head" in inspection.reason
        assert inspection.num_classes is None
        assert "weights hold no head" in str(inspection)
    assert check(resnet)[-1].holds is False
    assert camify.inspect("torchvision/resnet18@none", input_size=64).cam_ready


@pytest.mark.slow
def test_the_convert_command_takes_the_names_of_the_new_classes(tmp_path, resnet):
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    main(["convert", resnet, str(tmp_path / "net"), "--head", "direct", "--input_size", "64", "--class_names",
          str(tmp_path / "names.txt")])  # fmt: skip
    assert camify.load(tmp_path / "net").class_names == ["dog", "cat"]


def test_a_file_that_lacks_more_or_less_than_the_head_is_refused(tmp_path, monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    for lost in ("layer4.1.", "fc.bias"):
        torch.save({key: value for key, value in state.items() if not key.startswith(lost)}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="missing"):
            resolve(f"torchvision/resnet18@{tmp_path / 'w.pth'}")
    some = ["alexnet", "mobilenet_v2", "resnet18", "resnet34", "vgg11"]  # all take seconds
    monkeypatch.setattr(torchvision_models, "torchvision_names", lambda: some)
    with pytest.raises(CheckpointError, match=r"fit none.*Nearest: resnet18"):
        resolve(str(tmp_path / "w.pth"))


def test_features_that_stay_random_are_refused(tmp_path):
    state = torchvision.models.swin_t().state_dict()  # its last norm lies before the last map and outside of features
    torch.save({key: value for key, value in state.items() if key.startswith("features.")}, tmp_path / "w.pth")
    source = resolve(f"torchvision/swin_t@{tmp_path / 'w.pth'}")
    assert "norm.weight" in source.missing_head
    with pytest.raises(ConversionError, match=r"lack norm\.weight, norm\.bias, which the network uses before"):
        camify.convert(source, head="direct", num_classes=2, input_size=64)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_timms_files_without_a_classifier(tmp_path, name):
    made = timm.create_model(name, num_classes=0)
    torch.save({key: value.half() for key, value in made.state_dict().items()}, tmp_path / "w.pth")  # VGG: 0.5 GB
    source = resolve(f"timm/{name}@{tmp_path / 'w.pth'}")
    classifier = made.default_cfg["classifier"]
    assert source.missing_head == (f"{classifier}.weight", f"{classifier}.bias")
    if name != "vgg11":
        assert camify.convert(source, head="direct", num_classes=3, input_size=64).num_classes == 3


@pytest.mark.slow
def test_torchvisions_own_features_are_a_source_without_head(monkeypatch):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.vgg16().state_dict().items()}
    broken = {
        key: torch.randn(shape) * 0.01 if key.startswith("features.") else torch.full(shape, torch.nan)
        for key, shape in shapes.items()
    }
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: broken)
    source = resolve("torchvision/vgg16@IMAGENET1K_FEATURES")
    assert source.headless
    assert source.class_names is None
    assert source.preprocessing.std == tuple(torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES.transforms().std)
    assert camify.convert(source, head="direct", num_classes=2, input_size=64).num_classes == 2


@pytest.mark.data
@pytest.mark.parametrize("name", ["alexnet", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_real_files_of_features(name):
    path = WEIGHTS / f"{name}-imagenet-features-fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    source = resolve(str(path))
    assert source.name == f"torchvision/{name}@{path}"
    assert source.headless
    stored = safetensors.torch.load_file(path)
    net = camify.convert(source, head="direct", num_classes=3, input_size=96)
    kept = net.features.state_dict()
    assert len(kept) == len(stored)
    assert all(torch.equal(a, stored[key].float()) for (key, a) in source.model.state_dict().items() if key in stored)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net.features(images), source.model.features[:-1](images))


def _features(network):
    return {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def _momentum_contrast(network):
    """As MoCo's checkpoints are: two encoders with projections in the place of the head, and a queue."""
    state = {}
    for name in ("encoder_q", "encoder_k"):
        state |= {f"module.{name}.{key}": value.clone() for key, value in _features(network).items()}
        state |= {f"module.{name}.fc.0.weight": torch.ones(128, 512), f"module.{name}.fc.0.bias": torch.ones(128)}
    state["module.encoder_k.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    return {"state_dict": state | {"module.queue": torch.ones(128, 16)}, "epoch": 200}


def _self_distilled(network):
    """As DINO's."""
    state = {f"module.backbone.{key}": value for key, value in _features(network).items()}
    heads = {"module.head.mlp.0.weight": torch.ones(64, 512), "module.head.mlp.0.bias": torch.ones(64)}
    return {"student": state | heads, "teacher": {"backbone.a": torch.ones(1)}, "epoch": 3}


def _listed_children(network):
    return torch.nn.Sequential(*list(network.children())[:-1]).state_dict()


@pytest.mark.parametrize(
    ("written", "note"),
    [
        (_momentum_contrast, "prefix module.encoder_q. removed"),
        (_self_distilled, "weights taken from student"),
        (_listed_children, "matched by order and shape"),
        (lambda network: {f"encoder.{key}": value for key, value in _features(network).items()}, "prefix encoder."),
    ],
)
def test_features_in_the_forms_of_self_supervised_training(tmp_path, written, note):
    network = torchvision.models.resnet18(weights=None).eval()
    torch.save(written(network), tmp_path / "w.pth")
    source = resolve(f"torchvision/resnet18@{tmp_path / 'w.pth'}")
    assert source.missing_head == ("fc.weight", "fc.bias")
    assert note in "; ".join(source.notes)
    assert all(torch.equal(value, source.model.state_dict()[key]) for key, value in _features(network).items())


@pytest.mark.parametrize("name", ["torchvision/vgg11@", ""])
@pytest.mark.slow
def test_features_of_vgg_saved_on_their_own(tmp_path, name):
    """Keras's "no top" as torch has it: ``model.features.state_dict()``, whose names begin with a number."""
    features = torchvision.models.vgg11(weights=None).features
    torch.save(features.state_dict(), tmp_path / "w.pth")
    source = resolve(f"{name}{tmp_path / 'w.pth'}")
    assert source.headless
    assert "prefix features. added to the names" in source.notes
    assert torch.equal(source.model.features[0].weight, features[0].weight)


def test_wrappers_around_inner_layers_are_removed(tmp_path):
    network = torchvision.models.resnet18(weights=None)
    state = {
        key.replace("layer1.", "layer1._fsdp_wrapped_module._checkpoint_wrapped_module."): value
        for key, value in network.state_dict().items()
    }
    torch.save({f"_fsdp_wrapped_module.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    source = resolve(f"torchvision/resnet18@{tmp_path / 'w.pth'}")
    assert not source.headless
    assert source.notes == ("names of wrappers around layers removed",)
    own, expected = source.model.state_dict(), network.state_dict()
    assert all(torch.equal(own[key], expected[key]) for key in expected)


def test_a_file_of_a_network_that_timm_has_without_a_classifier(tmp_path):
    network = timm.create_model("eva02_tiny_patch14_224", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    source = resolve(f"timm/eva02_tiny_patch14_224@{tmp_path / 'w.pth'}")
    assert source.missing_head == ("head.weight", "head.bias")
