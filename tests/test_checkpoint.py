"""The checkpoint folder: what comes back, what is refused, and what an interruption leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from camify.checkpoint.certificate import Certificate, Part, short_source
from camify.checkpoint.folder import manifest_digest
from camify.checkpoint.model_card import model_card
from camify.conversion import convert
from camify.errors import CheckpointError, ConversionError
from camify.exporters.metadata import file_metadata
from camify.model import CAMNet

FILES = ["README.md", "camify.json", "model.safetensors"]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


class Own(nn.Module):
    """A user's network with functions, a skip connection and a class of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        x = F.relu(self.one(x))
        x = F.relu(self.norm(self.two(x)) + x)
        return self.last(F.max_pool2d(x, 2).view(x.shape[0], -1))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 5)
    )


def network(legacy=None, **options) -> CAMNet:
    options = {"input_size": 32, "head_channels": 6, "seed": 0, "dropout": 0.25} | options
    net = convert(legacy or plain(), **options)
    net.class_names = ["cat", "dog", "Zürich | <b>", "日本", "e"]
    net.preprocessing = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    net.results = {"val/acc": 0.75, "epoch": 3}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return network().save_pretrained(tmp_path_factory.mktemp("written") / "export")


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "export")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "camify.json").read_text(encoding="utf-8"))


def change(folder: Path, *path, value=None, delete=False):
    """Write the manifest anew with one field changed, and signed anew: as somebody would who means it."""
    data = manifest(folder)
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    if delete:
        del place[last]
    else:
        place[last] = value
    if path != ("digest",):
        data["digest"] = manifest_digest(data)
    (folder / "camify.json").write_text(json.dumps(data), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------- round trips


NETWORKS = {
    "sequential": (plain, {}),
    "graph": (Own, {}),
    "direct": (Own, {"head": "direct"}),
    "gmp": (plain, {"pool": "gmp"}),
    "lse": (Own, {"pool": "lse"}),
    "resnet": (lambda: torchvision.models.resnet18(num_classes=5), {"head": "direct", "input_size": 64}),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=5), {"input_size": 64}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_comes_back(tmp_path, name):
    build, options = NETWORKS[name]
    net = network(build(), **options)
    path = net.save_pretrained(tmp_path / "export")
    assert path == tmp_path / "export"
    assert sorted(file.name for file in path.iterdir()) == FILES
    again = CAMNet.from_pretrained(str(path))
    assert again.class_names == net.class_names
    assert again.preprocessing == net.preprocessing
    assert again.results == net.results
    assert again.certificate == net.certificate
    assert again.head_layers == net.head_layers
    assert (again.pool_name, again.dropout.p) == (net.pool_name, net.dropout.p)
    assert not any(module.training for module in again.modules())
    assert type(again.features) is type(net.features) or isinstance(net.features, torch.fx.GraphModule)
    for (ours, a), (theirs, b) in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert ours == theirs
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    images = torch.randn(2, 3, 64, 64) if options.get("input_size") == 64 else IMAGES
    with torch.no_grad():
        for ours, theirs in zip(net.forward_with_maps(images), again.forward_with_maps(images), strict=True):
            assert torch.equal(ours, theirs)
    # and it can be trained and saved again
    again.train()
    again(images).sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    assert sorted(f.name for f in again.save_pretrained(tmp_path / "second").iterdir()) == FILES


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_come_back(tmp_path, dtype):
    net = network(plain().to(dtype))
    again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "export"))
    assert {p.dtype for p in again.parameters()} == {dtype}
    with torch.no_grad():
        assert torch.equal(net(IMAGES.to(dtype)), again(IMAGES.to(dtype)))


def test_a_network_without_names_certificate_and_bias_comes_back(tmp_path):
    net = CAMNet(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2, bias=False)).eval()
    again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "export"))
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert (again.class_names, again.preprocessing, again.certificate, again.results) == (None, None, None, {})
    assert again.classifier.bias is None


FRESH = """
import json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from camify.model import CAMNet

torch.set_num_threads(1)
folder, expected, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
net = CAMNet.from_pretrained(folder)
expected = torch.load(expected, weights_only=True)
found = {
    "equal": torch.equal(net(expected["images"]), expected["logits"]),
    "names": net.class_names,
    "modules": [n for n in ("pytorch_lightning", "camify.conversion", "test_checkpoint") if n in sys.modules],
    "killed": {},
}

def save_and_die(place, step):
    count = 0
    def watch(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir") and str(place.parent) in str(args[0]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    CAMNet(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2)).save_pretrained(place)

for step in (1, 3, 5, 99):
    place = scratch / str(step) / "export"
    place.parent.mkdir()
    child = os.fork()
    if child == 0:
        try:
            save_and_die(place, step)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    found["killed"][step] = [os.WIFSIGNALED(status), place.exists()]
    if place.exists():
        CAMNet.from_pretrained(place)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> dict:
    """What a process found that never saw the user's class (one process for both tests: torch imports slowly)."""
    place = tmp_path_factory.mktemp("fresh")
    net = network(Own())
    net.save_pretrained(place / "export")
    torch.save({"images": IMAGES, "logits": net(IMAGES).detach()}, place / "expected.pt")
    (place / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(place / "export"), str(place / "expected.pt"), str(place / "scratch")],
        capture_output=True, text=True, check=False, cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_loads_in_a_process_that_never_saw_the_users_class(fresh):
    assert fresh["equal"]
    assert fresh["names"][3] == "日本"
    assert fresh["modules"] == []


def test_a_killed_save_never_leaves_a_folder_that_looks_finished(fresh):
    """A real kill at every step of writing: what stands under the name is complete, or nothing does."""
    killed = {int(step): result for step, result in fresh["killed"].items()}
    assert killed[1] == [True, False]
    assert sum(was_killed for was_killed, _ in killed.values()) == 3
    assert killed[99] == [False, True]
    for was_killed, exists in killed.values():
        assert exists is not was_killed


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from camify.model import CAMNet
net = CAMNet.from_pretrained(sys.argv[1])
rename, calls = Path.rename, []

def dying(self, target):
    calls.append(target)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = dying
net.save_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_between_the_two_renames_leaves_the_previous_folder_whole(folder):
    """The one moment at which nothing stands under the name."""
    before = contents(folder)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_REPLACING, str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    refuses(folder, "interrupted", "Rename it back")
    (left,) = folder.parent.glob(".export-*.old")
    assert contents(left) == before
    left.rename(folder)
    CAMNet.from_pretrained(folder)


def test_figures_that_were_not_measured_are_null(tmp_path):
    net = network()
    net.results = {"val/acc": float("nan"), "loss": float("inf"), "epoch": 2, "note": "best"}
    path = net.save_pretrained(tmp_path / "export")
    text = (path / "camify.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert CAMNet.from_pretrained(path).results == {"val/acc": None, "loss": None, "epoch": 2, "note": "best"}


def test_values_that_json_cannot_hold_are_refused_before_anything_changes(tmp_path, folder):
    before = contents(folder)
    net = network()
    net.results = {"tensor": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"export.*JSON.*Tensor"):
        net.save_pretrained(folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_features_with_code_of_their_own_are_refused_by_name(tmp_path):
    class Strange(nn.Softsign):
        pass

    Strange.__module__ = "torch.nn.strange"
    net = CAMNet(nn.Sequential(nn.Conv2d(3, 4, 3), Strange()), nn.Linear(4, 2))
    with pytest.raises(ConversionError, match=r"layer 1: .*Strange cannot be stored"):
        net.save_pretrained(tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- writing


class OtherStepsInTraining(Own):
    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x)
        return super().forward(x)


@pytest.mark.parametrize("head", ["gap", "direct"])
def test_a_network_that_needs_its_own_code_is_refused_in_one_sentence(tmp_path, head):
    net = convert(OtherStepsInTraining(), head=head, input_size=32)
    with pytest.raises((ConversionError, CheckpointError), match=r"cannot be stored without (its own )?code"):
        net.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path, folder):
    (folder / "README.md").unlink()
    net = network(Own())
    net.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert torch.equal(CAMNet.from_pretrained(folder)(IMAGES), net(IMAGES))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_parents_are_made_and_an_empty_folder_is_filled(tmp_path):
    deep = network().save_pretrained(tmp_path / "a" / "b" / "export")
    assert sorted(path.name for path in deep.iterdir()) == FILES
    (tmp_path / "empty").mkdir()
    network().save_pretrained(tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == FILES
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755


FOREIGN = [
    ["notes.txt"],
    ["camify.json", "notes.txt"],
    ["README.md"],  # somebody's project
    ["model.safetensors"],  # somebody's weights
    ["README.md", "model.safetensors"],
    [".git"],
]


@pytest.mark.parametrize("names", FOREIGN)
def test_a_foreign_folder_is_refused_and_untouched(tmp_path, names):
    place = tmp_path / "export"
    place.mkdir()
    for name in names:
        (place / name).write_text("mine")
    before = contents(place)
    with pytest.raises(CheckpointError, match=r"export: holds .*camify did not write"):
        network().save_pretrained(place)
    assert contents(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_files_and_links_are_refused_and_untouched(tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"file: is a file"):
        network().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    before = contents(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(CheckpointError, match=r"link: is a symbolic link"):
        network().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(folder) == before
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        network().save_pretrained(tmp_path / "file" / "export")


class Stop(BaseException):
    """An interruption that is no Exception: Ctrl-C, or a signal."""


def failing(function, error, when):
    """The function, but its ``when``-th call raises."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == when:
            raise error
        return function(*args, **kwargs)

    return wrapped


STEPS = [
    ("weights", safetensors.torch, "save_file", 1),
    ("card", Path, "write_text", 1),
    ("manifest", Path, "write_text", 2),
    ("old aside", Path, "rename", 1),
    ("new in place", Path, "rename", 2),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[0])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stop(), KeyboardInterrupt()])
def test_an_interruption_leaves_the_previous_checkpoint_whole(tmp_path, folder, monkeypatch, step, error):
    _, owner, name, when = step
    before = contents(folder)
    other = network(Own())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), error, when))
        with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as refusal:
            other.save_pretrained(folder)
    if isinstance(error, OSError):
        assert "export: cannot be written (No space left on device)" in str(refusal.value)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    CAMNet.from_pretrained(folder)


@pytest.mark.parametrize("step", STEPS[:-1], ids=lambda step: step[0])
def test_an_interruption_of_the_first_save_leaves_nothing(tmp_path, monkeypatch, step):
    _, owner, name, when = step
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), OSError(28, "No space left on device"), when))
    with pytest.raises(CheckpointError):
        network().save_pretrained(tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- reading


def refuses(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        CAMNet.from_pretrained(folder)
    message = str(refusal.value)
    assert str(folder) in message
    for word in words:
        assert word in message, message


def test_missing_files_are_named(tmp_path, folder):
    refuses(tmp_path / "nothing", "does not exist", "camify.json")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "holds no camify.json")
    refuses(folder / "model.safetensors", "camify.json")
    (folder / "model.safetensors").unlink()
    refuses(folder, "model.safetensors", "no such file")


@pytest.mark.parametrize("position", [0, 7, 8, 40, 200, -1, -500])
def test_a_flipped_bit_in_the_weights_is_found(folder, position):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
    refuses(folder, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_found(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refuses(folder, "model.safetensors")
    path.write_bytes(data + b"x")
    refuses(folder, "model.safetensors")


def test_the_weights_of_another_network_are_found(tmp_path, folder):
    other = network(Own()).save_pretrained(tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder)
    refuses(folder, "model.safetensors", "sha256")
    change(folder, "sha256", value=manifest(other)["sha256"])
    refuses(folder, "camify.json", "does not fit the weights")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"text"', "3", "[" * 100_000, "{}", '{"a": NaN}', "\x00"])
def test_a_damaged_manifest_is_named(folder, text):
    (folder / "camify.json").write_text(text)
    refuses(folder, "camify.json")
    (folder / "camify.json").write_bytes(b"\xff\xfe\x00" + text.encode())
    refuses(folder, "camify.json", "not valid JSON")


@pytest.mark.parametrize("version", [5, 99, "1", None, 1.5, [1]])
def test_a_newer_or_unknown_schema_is_refused(folder, version):
    change(folder, "schema_version", value=version)
    words = ["newer", "Update camify"] if isinstance(version, int) else ["schema_version"]
    refuses(folder, "camify.json", *words)


TOP = ["schema_version", "sha256", "class_names", "preprocessing", "results", "certificate", "architecture"]
SHAPE = ["pool", "dropout", "num_features", "num_classes", "bias", "head_layers", "features"]


@pytest.mark.parametrize("path", [(name,) for name in TOP] + [("architecture", name) for name in SHAPE])
def test_missing_fields_are_named(folder, path):
    change(folder, *path, delete=True)
    refuses(folder, path[-1])


WRONG = [
    (("class_names",), ["a", "b"], "2 names for 5 classes"),
    (("class_names",), "abcde", "class_names"),
    (("class_names",), [1, 2, 3, 4, 5], "class_names"),
    (("class_names",), {"a": 1}, "class_names"),
    (("class_names",), 5, "class_names"),
    (("results",), None, "results"),
    (("results",), [1], "results"),
    (("preprocessing",), "resize", "preprocessing"),
    (("architecture",), None, "camify.json"),
    (("architecture", "pool"), "avg", "pool='avg'"),
    (("architecture", "pool"), "gmp", "pool of certificate"),
    (("architecture", "dropout"), 2, "camify.json"),
    (("architecture", "dropout"), "x", "camify.json"),
    (("architecture", "num_classes"), 4, "camify.json"),
    (("architecture", "num_features"), 7, "camify.json"),
    (("architecture", "num_features"), "6", "camify.json"),
    (("architecture", "bias"), False, "classifier.bias"),
    (("architecture", "head_layers"), 3, "camify.json"),
    (("architecture", "features"), {}, "camify.json"),
    (("architecture", "features", "layers"), {}, "camify.json"),
    (("sha256",), "0" * 64, "sha256"),
]


@pytest.mark.parametrize(("path", "value", "word"), WRONG)
def test_wrong_fields_are_named(folder, path, value, word):
    change(folder, *path, value=value)
    refuses(folder, word)


CERTIFICATE = [
    (("certificate", "num_classes"), 6, "num_classes of certificate"),
    (("certificate", "map_channels"), 7, "map_channels of certificate"),
    (("certificate", "pool"), "lse", "pool of certificate"),
    (("certificate", "input_shape"), [3, 32], "input_shape"),
    (("certificate", "input_shape"), [3, -1, 32], "input_shape"),
    (("certificate", "input_shape"), [3, "32", 32], "input_shape"),
    (("certificate", "input_shape"), [1, 32, 32], "does not run on images"),
    (("certificate", "input_shape"), [3, 10**9, 10**9], "does not run on images"),
    (("certificate", "input_shape"), None, "certificate"),
    (("certificate", "map_size"), "ab", "map_size"),
    (("certificate", "identity_error"), "none", "identity_error"),
    (("certificate", "parts"), [{}], "certificate"),
    (("certificate", "parts", 0, "status"), "[red]stolen", "parts"),
    (("certificate", "parts", 0, "parameters"), "many", "parts"),
    (("certificate", "notes"), [1], "notes"),
    (("certificate", "source"), 3, "source"),
    (("certificate", "signed_by"), "me", "signed_by"),
    (("certificate",), [], "certificate"),
    (("certificate",), "proven", "certificate"),
]


@pytest.mark.parametrize(("path", "value", "word"), CERTIFICATE)
def test_a_tampered_certificate_is_refused(folder, path, value, word):
    change(folder, *path, value=value)
    refuses(folder, "camify.json", word)


@pytest.mark.parametrize(
    "field", [field for field in Certificate.__dataclass_fields__ if "error" not in field and field != "place"]
)
def test_a_certificate_with_a_missing_field_is_refused(folder, field):
    change(folder, "certificate", field, delete=True)
    if field == "notes":
        refuses(folder, "notes")
    else:
        refuses(folder, "certificate", field)


def test_the_identity_is_proven_anew_on_loading(folder):
    """A folder whose hash is right but whose network is none: the features return NaN."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["features.0.weight"][0] = torch.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    import hashlib

    change(folder, "sha256", value=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    refuses(folder, "camify.json", "do not add up to the logits")


def test_a_network_that_writes_files_is_not_loaded(tmp_path, folder, monkeypatch):
    """torch.fx's modules have methods that write: a layer of that name must not become a call of it."""
    monkeypatch.chdir(tmp_path)
    features = manifest(folder)["architecture"]["features"]
    features["layers"]["to_folder"] = features["layers"]["0"]
    call = {"name": "z", "op": "call_module", "target": "to_folder", "args": {"tuple": ["pwned", "Evil"]}}
    features["nodes"].insert(1, call)
    change(folder, "architecture", "features", value=features)
    refuses(folder, "camify.json", "to_folder")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


# ---------------------------------------------------------------- the record and the card


def record(**changes) -> Certificate:
    values = {
        "source": "torchvision/vgg16", "head": "gap", "pool": "gap", "feature_layer": "features.29",
        "input_shape": (3, 224, 224), "map_size": (14, 14), "map_channels": 1024, "num_classes": 37,
        "legacy_classes": 1000, "parts": (Part("features", "kept", "0 ... 29", 14_714_688),
                                          Part("head", "dropped", "classifier.0", 123_642_856)),
        "identity_error": 3e-7, "notes": ("a note",),
    }  # fmt: skip
    return Certificate(**{**values, **changes})


def test_a_certificate_goes_through_json():
    for one in (record(), record(identity_error=None, pool="lse"), record(legacy_error=0.0, notes=(), parts=())):
        assert Certificate.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_files_for_others_name_no_folder_of_this_machine(tmp_path):
    net = network()
    net.certificate = net.certificate.named("torchvision/vgg16@/home/somebody/weights.pth")
    net.save_pretrained(tmp_path / "model")
    assert net.certificate.source.endswith("@/home/somebody/weights.pth"), "the network stays as it is"
    assert CAMNet.from_pretrained(tmp_path / "model").certificate.source == "torchvision/vgg16@weights.pth"
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert files
    assert not [path.name for path in files if b"somebody" in path.read_bytes()]
    assert file_metadata(net, preprocess=False, outputs=("logits",), size=(32, 32), channels=3)["source"] == (
        "torchvision/vgg16@weights.pth"
    )


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("/home/me/nets/net.onnx", "net.onnx"),
        ("./nets/net.keras", "net.keras"),
        ("C:\\nets\\net.onnx", "net.onnx"),
        ("C:/nets/net.onnx", "net.onnx"),
        ("/home/me/export/", "export"),
        ("mine.networks:make@C:\\weights\\best.pth", "mine.networks:make@best.pth"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf:user/name", "hf:user/name"),
    ],
)
def test_a_source_without_folders(source, short):
    assert short_source(source) == short
    assert short_source(short) == short


def test_a_certificate_is_ready_only_with_a_small_error():
    assert record(identity_error=1e-4).cam_ready
    assert not record(identity_error=1.1e-4).cam_ready
    assert not record(identity_error=float("nan")).cam_ready
    assert not record(identity_error=None).cam_ready


def test_a_certificate_prints_what_it_knows():
    text = str(record(source="runs[1]/[red]x[/]"))
    for part in ("runs[1]/[red]x[/]", "14 x 14", "1024 channels", "224 x 224", "123,642,856", "dropped", "3.0e-07"):
        assert part in text
    assert "none" in str(record(identity_error=None, pool="gmp"))
    assert "kept, largest difference 2.0e-06 of the largest logit" in str(record(legacy_error=2e-6))
    assert "changed, largest difference 9.4e-01 of the largest logit" in str(record(legacy_error=0.94))


def test_the_card_has_the_facts(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: camify\n")
    net = CAMNet.from_pretrained(folder)
    for part in net.certificate.parts:
        assert f"{part.parameters:,}" in text
    for fact in ("5 classes", "32 x 32 px", "GAP", "accuracy |  | 0.75 |", "cat, dog", "日本", "camify.load("):
        assert fact in text


HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "a\n# Title",
    "a\r\n| x | y |",
    "[click](javascript:alert(1))",
    "![](https://example.com/pixel.png)",
    "`code`",
    "**bold**",
    "back\\|slash",
    "&lt;b&gt;",
    "<!-- ",
    "---",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_cannot_leave_their_place_in_the_card(text):
    architecture = {"num_classes": 2}
    data = {
        "class_names": [text, "plain"],
        "preprocessing": {text: text},
        "results": {text: text, "none": None},
        "certificate": record(source=text, parts=(Part(text, "kept", text, 1),)).to_dict(),
        "architecture": architecture,
    }
    harmless = json.loads(json.dumps(data).replace(json.dumps(text), '"name"'))
    card, expected = model_card(data), model_card(harmless)
    assert len(card.splitlines()) == len(expected.splitlines())
    for ours, theirs in zip(card.splitlines(), expected.splitlines(), strict=True):
        # a line has the same marks with the name as with a harmless one
        assert all(ours.count(mark) == theirs.count(mark) for mark in "|<>[]`*\\"), ours
        # and begins like it: no heading, list, rule or quotation
        assert ours[:1] == theirs[:1]


def test_html_of_a_name_reads_as_the_name():
    import html

    data = {
        "class_names": HOSTILE, "preprocessing": None, "results": {}, "certificate": None,
        "architecture": {"num_classes": len(HOSTILE)},
    }  # fmt: skip
    line = model_card(data).splitlines()[-1]
    assert html.unescape(line) == "In order: " + ", ".join(" ".join(name.split()) for name in HOSTILE)


def test_a_card_of_very_many_classes_stays_short():
    data = {
        "class_names": [f"class {index}" for index in range(5000)], "preprocessing": None, "results": {},
        "certificate": None, "architecture": {"num_classes": 5000},
    }  # fmt: skip
    text = model_card(data)
    assert "class 199 ..." in text
    assert "class 200" not in text
