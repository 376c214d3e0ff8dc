"""Folders that transformers writes: nine families read as known layers, and everything that is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import safetensors.torch
import torch

import camify
from camify.checkpoint.architecture import describe
from camify.checkpoint.folder import read_tensors
from camify.errors import CheckpointError, ConversionError
from camify.sources import load, resolve
from camify.task import Task
from tests.foreign_code import RunsCode

transformers = pytest.importorskip("transformers")

SIZE = 32
NAMES = ["ant", "bee", "cat", "dog", "elk"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
FAMILIES = {
    "ResNet": {"embedding_size": 8, "layer_type": "basic", **STAGES},
    "ConvNext": {"drop_path_rate": 0.2, **STAGES},
    "RegNet": {"embedding_size": 8, "groups_width": 8, **STAGES},
    "MobileNetV2": {"depth_multiplier": 0.25, "finegrained_output": False},
    "ViT": {"intermediate_size": 32, **TOKENS},
    "DeiT": {"intermediate_size": 32, **TOKENS},
    "Beit": {"intermediate_size": 32, "use_relative_position_bias": True, **TOKENS},
    "Dinov2": {"mlp_ratio": 2, "drop_path_rate": 0.1, **TOKENS},
    "Swin": {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "image_size": SIZE,
        "patch_size": 2,
    },
}
SIZES = {"ResNet": 64, "ConvNext": 64, "RegNet": 64, "MobileNetV2": 64}  # others: SIZE
VERDICTS = {"ResNet": "native", "RegNet": "native", "MobileNetV2": "native", "Swin": "native"}  # others: convertible
BYTES = {"do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [58.0, 57.0, 57.5]}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIZE, "width": SIZE},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


def network_of(family, head="ForImageClassification", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **LABELS, **options)
    network = getattr(transformers, f"{family}{head}")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network


def write(network, folder, processor=PROCESSOR):
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other make tiny networks slow where other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Every family: the network and its folder."""
    root = tmp_path_factory.mktemp("transformers")
    made = {family: network_of(family) for family in FAMILIES}
    return {family: (network, write(network, root / family)) for family, network in made.items()}


@pytest.fixture(scope="module")
def sources(networks):
    return {family: resolve(str(folder)) for family, (_, folder) in networks.items()}


@pytest.fixture
def vit(networks, tmp_path):
    """A ViT's folder that may be damaged, and its config."""
    folder = tmp_path / "vit"
    write(networks["ViT"][0], folder)
    return folder, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(networks, sources, family):
    network, source = networks[family][0], sources[family]
    for count in (1, 3):
        images = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = network(images).logits
            torch.testing.assert_close(source.model(images), expected, rtol=1e-5, atol=1e-5)
    assert source.class_names == NAMES
    assert source.task is Task.MULTICLASS
    assert source.preprocessing.mean == (0.5, 0.4, 0.3)
    assert not source.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_knows_where_the_map_is(sources, family):
    report = camify.inspect(sources[family].model, input_size=SIZES.get(family, SIZE))
    assert report.verdict == VERDICTS.get(family, "convertible")


def test_all_are_of_layers_that_can_be_stored(sources):
    for source in sources.values():
        assert describe(source.model)["nodes"]


def converted(source, family, folder):
    net = camify.convert(source.model, head="direct", input_size=SIZES.get(family, SIZE), class_names=NAMES, seed=0)
    return net.eval().save_pretrained(folder), net


def test_a_converted_network_is_loaded_without_transformers(sources, tmp_path, monkeypatch):
    folder, net = converted(sources["Swin"], "Swin", tmp_path / "swin")
    monkeypatch.setitem(sys.modules, "transformers", None)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(images), net(images))


@pytest.mark.slow
def test_every_family_is_loaded_by_another_process(sources, tmp_path):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    expected = {}
    for family, source in sources.items():
        _, net = converted(source, family, tmp_path / family)
        with torch.no_grad():
            expected[family] = net(images)
    torch.save(expected, tmp_path / "expected.pth")
    code = f"""
import sys
import torch, camify
for family, logits in torch.load({str(tmp_path / "expected.pth")!r}, weights_only=True).items():
    net = camify.load({str(tmp_path)!r} + "/" + family)
    images = torch.randn(2, 3, {SIZE}, {SIZE}, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.allclose(net(images), logits, rtol=1e-4, atol=1e-5), family
models = [name for name in sys.modules if name.startswith("transformers.models.") and ".auto" not in name]
print([name for name in models if ".modeling_" in name])  # torchmetrics imports a part of transformers where it can
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_drop_paths_work_in_training_and_other_sizes_pad_as_transformers_does(networks, sources):
    kinds = {type(layer).__name__ for layer in sources["Dinov2"].model.modules()}
    assert "StochasticDepth" in kinds
    images = torch.randn(2, 3, 45, 51)  # sizes at which TensorFlow's padding is another one
    with torch.no_grad():
        expected = networks["MobileNetV2"][0](images).logits
    torch.testing.assert_close(sources["MobileNetV2"].model(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_attention_networks_are_explained(sources, method):
    images = torch.randn(2, 3, SIZE, SIZE)
    for family in ("ViT", "Swin"):
        heat = camify.explain(sources[family].model, images, method=method)
        assert heat.shape == (2, SIZE, SIZE)
        assert bool(heat.isfinite().all())


# ---------------------------------------------------------------- files


def test_nothing_is_fetched_for_a_folder(networks, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("asked for a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    resolve(str(networks["ViT"][1]))
    assert capfd.readouterr() == ("", "")  # nor are bars or tables printed


def test_shards_and_plain_pickles_are_read(networks, vit):
    network, (folder, _) = networks["ViT"][0], vit
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network(images).logits
    state = read_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    source = resolve(str(folder))
    torch.testing.assert_close(source.model(images), expected)
    assert "nothing in it was run" in " ".join(source.notes)
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, keys in parts.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(resolve(str(folder)).model(images), expected)
    index["weight_map"][names[0]] = "../other/model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="field weight_map"):
        resolve(str(folder))


def test_a_pickle_that_runs_code_is_refused(vit, tmp_path):
    folder, _ = vit
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2), "more": RunsCode(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        resolve(str(folder))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "model.Net"}}, "code that comes with the weights"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ({"hidden_size": 10**12}, "the number 1000000000000"),
        ({"hidden_size": 960_000}, r"asks for .* numbers|GiB"),
        ({"num_hidden_layers": 500_000}, "more layers than the"),
        ({"image_size": 8192, "patch_size": 1}, "asks for|GiB"),
        ({"hidden_size": 32}, "of another shape"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unknown"),
        ({"hidden_act": "no_such"}, r"no_such"),
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": None, "architecture": None}, "names no network|of the kind"),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "7": "e"}}, "id2label"),
        ({"num_channels": -1}, "num_channels"),
    ],
)
def test_configs_that_do_not_fit_are_refused(vit, change, message):
    folder, config = vit
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises((CheckpointError, ConversionError), match=message):
        resolve(str(folder))


def test_tensors_never_stay_random_without_a_word(vit):
    folder, _ = vit
    state = read_tensors(folder / "model.safetensors")
    lacking = {key: value for key, value in state.items() if "layernorm_before" not in key}
    safetensors.torch.save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"4 missing, 0 unknown(.|\n)*layernorm_before"):
        resolve(str(folder))
    half = {key: value for key, value in state.items() if key != "classifier.bias"}
    safetensors.torch.save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing(.|\n)*classifier.bias"):
        resolve(str(folder))
    safetensors.torch.save_file(state | {"extra": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown(.|\n)*extra"):
        resolve(str(folder))


@pytest.mark.parametrize("head", ["Model", "ForMaskedImageModeling"])
def test_features_without_a_head_say_so(tmp_path, head):
    source = resolve(str(write(network_of("ViT", head), tmp_path / "vit")))
    assert source.missing_head == ("classifier.bias", "classifier.weight")
    assert source.class_names is None
    with pytest.raises(ConversionError, match="the features alone"):
        source.require_head("explaining it")
    net = camify.convert(source.model, head="gap", num_classes=2, input_size=SIZE)
    assert net(torch.randn(1, 3, SIZE, SIZE)).shape == (1, 2)


def test_damaged_files_are_named(vit):
    folder, config = vit
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        resolve(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds config\.json and no model\.safetensors"):
        resolve(str(folder))
    (folder / "config.json").write_text(json.dumps(config)[:-40])
    with pytest.raises(CheckpointError, match=r"config\.json: is not valid JSON"):
        resolve(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither camify\.json nor config\.json"):
        resolve(str(folder))


def test_a_legacy_folder_is_no_cam_ready_one(networks):
    with pytest.raises(CheckpointError, match="is a legacy network"):
        load(str(networks["ResNet"][1]))


# ---------------------------------------------------------------- what it says of images and classes


def test_preprocessing_is_that_of_the_image_processor(networks, tmp_path):
    """Of a picture that already has the size, transformers' processor and camify give the same input."""
    picture = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    for options in ({}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, BYTES):
        processor = transformers.ViTImageProcessor(
            **{
                "size": {"height": SIZE, "width": SIZE},
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.4] * 3,
                **options,
            }
        )
        folder = write(networks["ResNet"][0], tmp_path / str(len(list(tmp_path.iterdir()))), None)
        processor.save_pretrained(folder)
        preprocessing = resolve(str(folder)).preprocessing
        expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0])
        mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
        torch.testing.assert_close((picture / 255 - mean) / std, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "size", "note"),
    [
        ({"size": {"shortest_edge": 36}, "crop_size": {"height": SIZE, "width": SIZE}, "do_center_crop": True}, SIZE,
         "resizes to 36 and cuts out the middle"),
        ({"size": {"shortest_edge": SIZE}, "crop_pct": 0.875}, SIZE, "the middle 88% of each side"),
        ({"size": SIZE}, SIZE, None),
        ({"size": {"height": 48, "width": 48}}, SIZE, "its network takes 32 x 32 px, its image processor gives 48"),
    ],
)  # fmt: skip
def test_what_camify_does_otherwise_is_said(vit, change, size, note):
    folder, _ = vit
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | change))
    source = resolve(str(folder))
    assert source.preprocessing.size == source.size == size
    assert note is None or note in " ".join(source.notes)


def test_classes_task_and_license(vit):
    folder, config = vit
    config["problem_type"] = "multi_label_classification"
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(5)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n")
    source = resolve(str(folder))
    assert (source.class_names, source.task, source.license) == (None, Task.MULTILABEL, "apache-2.0")
    assert (source.preprocessing, source.size) == (None, SIZE)
    assert "no names" in " ".join(source.notes)


# ---------------------------------------------------------------- the Hub


def test_of_a_repository_only_known_files_are_fetched(networks, monkeypatch):
    asked = []

    def fetch(name, *, revision, allow_patterns, local_files_only):
        asked.append((name, local_files_only, tuple(allow_patterns)))
        return str(networks["ViT"][1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for text, weights in (("hf:someone/vit", True), ("someone/vit", False)):
        asked.clear()
        source = resolve(text, weights=weights)
        assert source.class_names == NAMES
        assert source.name == text
        assert {(name, cached) for name, cached, _ in asked} == {("someone/vit", not weights)}
        patterns = {pattern for _, _, patterns in asked for pattern in patterns}
        assert "config.json" in patterns
        assert not any(pattern.endswith((".py", ".bin", ".pkl", "*")) for pattern in patterns)


def test_a_folder_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=4).eval()
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    source = resolve(str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(source.model(images), network(images))
    assert source.preprocessing.size == network.pretrained_cfg["input_size"][1]
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"architecture": "resnet9000"}, "no such network"),
        ({"model_args": {"a": 1}}, "model_args"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((CheckpointError, ConversionError), match=message):
            resolve(str(tmp_path))
