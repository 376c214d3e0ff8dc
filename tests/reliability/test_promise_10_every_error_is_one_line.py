"""Promise 10: whatever a user can cause ends in one line on stderr that names it, and in an exit code; no traceback.

Scenario 1 of the reliability findings: wrong options of both programs. A row is a command line and words of its error.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

import camify
from camify.batch import Batch
from camify.cli import failures
from camify.cli.commands import main
from camify.cli.failures import explained
from camify.errors import ConfigError, DataError
from camify.files import require_writable, write_whole
from camify.training.callbacks.run_record import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore")  # the command line sets its own filters
PACKAGE = Path(camify.__file__).parent

FIT = """
--model.label_smoothing 2 | label_smoothing=2.0 must be in [0, 1)
--model.label_smoothing -0.1 | label_smoothing=-0.1
--model.momentum 1 | momentum=1.0 must be in [0, 1)
--model.momentum -0.1 | momentum=-0.1
--model.dropout 1 | dropout=1.0 must be in [0, 1)
--model.teacher_weight 5 --model.teacher legacy | teacher_weight=5.0 must be in [0, 1]
--model.teacher_temperature 0 | teacher_temperature=0.0 must be positive
--model.box_weight -1 | box_weight=-1.0
--model.lr 0 | lr=0.0 must be positive
--model.lr nan | "model.lr"
--model.lr abc | "model.lr": Expected float
--trainer.logger foo | "trainer.logger": foo is no class that is known here; expected Iterable, or bool
--trainer.plugins foo | "trainer.plugins": foo is no class that is known here; expected list
--model.head_lr_factor -1 | head_lr_factor=-1.0
--model.weight_decay -1 | weight_decay=-1.0
--model.freeze_epochs -1 | freeze_epochs=-1
--model.freeze_epochs 0.5 | "model.freeze_epochs": Expected int
--model.warmup_epochs -1 | warmup_epochs=-1.0
--model.layer_decay 2 | layer_decay=2.0 must be in (0, 1]
--model.gradient_clip -1 | gradient_clip=-1.0
--model.head best | "model.head": Expected one of 'gap', 'direct', 'recast', 'none'
--model.pool max | "model.pool"
--model.init zeros | "model.init"
--model.optimizer lion | "model.optimizer": Expected one of 'sgd', 'adamw'
--model.schedule linear | "model.schedule"
--model.schedule step | lr_drops=[]
--model.lr_drops [2] --model.schedule step | lr_drops=[2.0]
--model.task regression | "model.task"
--model.task multilabel | do not fit task 'multilabel'
--model.input_size 0 | input_size=0 must be whole numbers of 1 to 8192 pixels
--model.input_size 100000 | input_size=100000 must be
--model.input_size [96] | "model.input_size"
--model.map_stride 0 | map_stride=0
--model.map_stride 3 | map_stride=3
--model.head_channels -4 | head_channels=-4
--model.head_channels [8,0] | head_channels=[8, 0]
--model.cutmix -1 | cutmix=-1.0
--model.hide_and_seek 1 | hide_and_seek=1.0
--model.adl_drop_rate 2 | adl_drop_rate=2.0
--model.adl_gamma -1 | adl_gamma=-1.0
--model.adl_layers [nowhere] | 'nowhere' does not exist
--model.fast_layers [nowhere] | no layer 'nowhere'
--model.feature_cache ram | "model.feature_cache"
--model.feature_cache memory --model.feature_cache_gb 0 | feature_cache_gb=0.0
--model.feature_cache memory --model.cached_views 0 | cached_views=0
--model.cam_metrics [nope] | nope unknown
--model.grid_mosaics 0 | grid_mosaics=0
--model.normalizer nope | "model.normalizer"
--model.percentile 200 | percentile=200.0
--model.class_weights [1,2] | class_weights=[1.0, 2.0]
--model.class_weights heavy | "model.class_weights"
--model.recipe nope | recipe='nope' is unknown
--model.teacher mine | "model.teacher"
--model.lrr 1 | Did you mean --model.lr?
--model.model torchvision/nothing | no such classifier
--model.momentum 3 --model.dropout 2 | momentum=3.0 must be in [0, 1).
--data.init_args.batch_size 0 | batch_size=0: must be a whole number of at least 1
--data.init_args.batch_size -1 | batch_size=-1
--data.init_args.batch_size 2.5 | "batch_size": Expected int
--data.init_args.train_count 0 | train_count=0
--data.init_args.val_count 0 | val_count=0
--data.init_args.image_size 4 | size=4
--data.init_args.augment nope | augment='nope'
--data.init_args.seed -1 | seed=-1
--data.init_args.nope 1 | 'nope' is not accepted
--data NoSuchModule | NoSuchModule
--data ImageFolderDataModule --data.init_args.root /nonexistent | /nonexistent/train: no such folder
--overlays.num_images -1 | num_images=-1
--overlays.num_images 0 | num_images=0
--overlays.every_n_epochs 0 | every_n_epochs=0
--overlays.num_highlights -1 | num_highlights=-1
--overlays.colormap nope | colormap='nope'
--overlays.method nope | method='nope'
--overlays.method [] | method=[]
--overlays.images [nowhere.png] | 'nowhere.png'
--record.quality val/nope | quality='val/nope', and nothing logs that
--checkpoint.monitor val/nope | monitor='val/nope', and nothing logs that
--checkpoint.monitor acc | Did you mean val/acc?
--checkpoint.mode nope | nope
--checkpoint.save_top_k -5 | save_top_k=-5
--trainer.max_epochs -2 | max_epochs
--trainer.max_epochs 0 | trainer.max_epochs=0: nothing would be trained
--trainer.max_epochs abc | "trainer.max_epochs": Expected int
--trainer.max_steps -7 | max_steps
--trainer.devices 0 | devices='0'
--trainer.devices -5 | devices
--trainer.accelerator cuda | CUDAAccelerator
--trainer.accelerator tpu | torch_xla
--trainer.accelerator nope | accelerator='nope'
--trainer.strategy nope | strategy='nope'
--trainer.precision 12 | "trainer.precision"
--trainer.num_nodes 0 | num_nodes
--trainer.limit_train_batches -1 | limit_train_batches
--trainer.limit_train_batches 0 | limit_train_batches=0
--trainer.limit_val_batches 0 | limit_val_batches=0
--trainer.limit_val_batches 7.5 | limit_val_batches
--trainer.val_check_interval 100 | val_check_interval
--trainer.check_val_every_n_epoch 0 | check_val_every_n_epoch=0
--trainer.num_sanity_val_steps -3 | num_sanity_val_steps=-3
--trainer.log_every_n_steps -1 | log_every_n_steps=-1
--trainer.accumulate_grad_batches 0 | accumulate_grad_batches=0
--trainer.gradient_clip_val -1 | gradient_clip_val=-1
--trainer.gradient_clip_algorithm nope | gradient_clip_algorithm
--trainer.max_time nope | nope
--trainer.profiler nope | profiler
--trainer.logger NoSuchLogger | NoSuchLogger
--trainer.callbacks NoSuchCallback | NoSuchCallback
--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/nope | EarlyStopping: monitor='val/nope'
--seed_everything -1 | -1 is not in bounds
--seed_everything 99999999999999999999 | not in bounds
--ckpt_path /nonexistent/last.ckpt | /nonexistent/last.ckpt
--config /nonexistent.yaml | /nonexistent.yaml
--nope 1 | --nope
"""
CAMIFY = """
inspect | missing: SOURCE (see camify inspect --help)
inspect nothing | 'nothing': no such network
inspect torchvision/nothing | no such classifier
inspect camify/tiny_vgg --input_size 0 | '0': expected one number or HEIGHTxWIDTH, whole, of 1 to 8192 pixels
inspect camify/tiny_vgg --input_size 100000 | whole, of 1 to 8192 pixels
inspect camify/tiny_vgg --input_size abc | "input_size"
inspect camify/tiny_vgg --input_size 7 | input_size (now 7x7)
inspect camify/tiny_vgg --nope 1 | --nope
convert camify/tiny_vgg | missing: OUT (see camify convert --help)
convert camify/tiny_vgg --out T/out | unrecognized arguments: --out (see camify convert --help)
convert camify/tiny_vgg T/out --head nope | --head
convert camify/tiny_vgg T/out --num_classes 0 | "num_classes": must be above 0
convert camify/tiny_vgg T/out --input_size 100000 | whole, of 1 to 8192 pixels
convert camify/tiny_vgg T/out --pool nope | --pool
convert camify/tiny_vgg T/out --map_stride 0 | "map_stride"
convert camify/tiny_vgg T/out --map_stride 3 --input_size 96 | map_stride=3
convert camify/tiny_vgg T/out --seed -1 | "seed": must be at least 0
convert camify/tiny_vgg T/out --class_names T/missing.txt | missing.txt
convert camify/tiny_vgg T/out --recipe nope | --recipe
convert camify/tiny_vgg T/out --input_format nope | --input_format
convert camify/tiny_vgg T/file | T/file: is a file, which camify did not write
convert camify/tiny_vgg T/file/below | T/file is a file
convert camify/tiny_vgg /proc/out | /proc/out: cannot be written
explain T/images --model M | missing: --out (see camify explain --help)
explain T/images --model M --out T/e --batch_size 0 | "batch_size": 0 must be above 0
explain T/images --model M --out T/e --workers -1 | "workers": -1 must be at least 0
explain T/images --model M --out T/e --device nope | device='nope' cannot be used here
explain T/images --model M --out T/e --device meta | device='meta' cannot be used here
explain T/images --model M --out T/e --topk 0 | "topk": 0
explain T/images --model M --out T/e --threshold 1 | "threshold": must be at least 0 and below 1
explain T/images --model M --out T/e --threshold nan | "threshold"
explain T/images --model M --out T/e --method nope | method='nope'
explain T/images --model M --out T/e --targets nope | --targets 'nope'
explain T/images --model M --out T/e --layer nope | layer='nope'
explain T/images --model M --out T/e --colormap nope | --colormap 'nope'
explain T/images --model M --out T/e --picture gif | --picture
explain T/images --model M --out T/e --precision int4 | --precision
explain T/images --model M --out T/e --options 3 | "options"
explain T/images --model M --out T/e --task binary | task='binary'
explain T/images --model M --out T/e --class_names T/file | holds 1 names
explain T/missing.jpg --model M --out T/e | missing.jpg: no such file
explain T/images --model T/missing --out T/e | no such network or folder
explain T/images --model M --out T/file | --out T/file: cannot be written: it is a file
explain T/images --model M --out /proc/e | --out /proc/e: cannot be written
compare | give IMAGES and --model
compare T/images --model M --figures -1 --out T/c | "figures"
compare T/images --model M --target nope --out T/c | --target 'nope'
compare T/images --model M --out T/file | T/file: is a file, which camify did not write
compare T/images --model M --out /proc/c | /proc/c: cannot be written
evaluate --model M --data T/missing --out T/v | missing: no such folder
evaluate --model M --data T/images --out T/v --limit 0 | "limit": must be above 0
evaluate --model M --data T/images --out T/v --faithfulness -1 | "faithfulness"
evaluate --model M --data T/images --out T/v --threshold 2 | "threshold"
evaluate --model M --data T/images --out T/v --device nope | device='nope'
evaluate --model M --data T/images --out /proc/v | /proc/v: cannot be written
report T/missing | missing: cannot be read as the folder of a run
report | missing: RUNS (see camify report --help)
evaluate | missing: --model, --data (see camify evaluate --help)
fit | missing: --model, --data (see
export M --to nope | --to
export M --to onnx --out T/file/x.onnx | T/file is a file
export M --to onnx --out /proc/m.onnx | /proc/m.onnx: cannot be written
export M --to onnx --out T/m.onnx --opset -1 | "opset"
export M --to onnx --out T/m.onnx --input_size 0 | "input_size"
export T/missing --to onnx | does not exist
push M nonsense | USER/NAME
nope | there is no such command. Commands: fit,
"""


def rows(table, each):
    """Command lines with the words of their errors; one of so many is in the default run, the others are slow."""
    lines = [line.split(" | ") for line in table.strip().splitlines()]
    return [
        pytest.param(command, words, id=command, marks=[pytest.mark.slow] if number % each else [])
        for number, (command, words) in enumerate(lines)
    ]


def refused(capsys, *words, code=2):
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    error = capsys.readouterr().err
    assert left.value.code == code, error
    lines = error.splitlines()
    assert len([line for line in lines if line.startswith("camify: error: ")]) == 1, error
    assert lines[-1].startswith("camify: error: "), error
    assert "Traceback" not in error
    return lines[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration that works, a network, images, and a file where a folder is wanted."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number, 9, 9)).save(folder / "images" / f"{number}.png")
    (folder / "file").write_text("x")
    camify.convert("camify/tiny_vgg", head="direct", input_size=96).save_pretrained(folder / "model")
    options = {
        "trainer": {
            "max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False, "log_every_n_steps": 1,
        },
        "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
        "data": {"class_path": "ShapesDataModule", "init_args": {"train_count": 12, "val_count": 6, "batch_size": 6}},
        "overlays": {"num_images": 1, "num_highlights": 0},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return folder


@pytest.fixture(autouse=True)
def _no_run_folder(monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    monkeypatch.delenv("CAMIFY_DEBUG", raising=False)


@pytest.mark.parametrize(("command", "words"), rows(FIT, 12))
def test_wrong_options_of_training(place, capsys, command, words):
    error = refused(capsys, "fit", "--config", str(place / "config.yaml"), *command.split(" "))
    assert words in error
    assert not (place / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(("command", "words"), rows(CAMIFY, 6))
def test_wrong_options_of_camify(place, capsys, command, words):
    known = {"M": str(place / "model")}
    arguments = [known.get(word, word.replace("T/", f"{place}/", 1)) for word in command.split(" ")]
    before = sorted(place.rglob("*"))
    assert words.replace("T/", f"{place}/") in refused(capsys, *arguments)
    assert sorted(place.rglob("*")) == before, "and nothing is left"


# ---------------------------------------------------------------- configuration files

BASE = """\
trainer: {max_epochs: 1, accelerator: cpu}
model: {model: camify/tiny_vgg, input_size: 96}
data: {class_path: ShapesDataModule, init_args: {train_count: 12, val_count: 6}}
"""


def bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\n"


FILES = {
    "empty": (b"", "config.yaml: is empty"),
    "a comment alone": (b"# nothing\n", "is empty"),
    "UTF-16": (BASE.encode("utf-16"), "is no text in UTF-8 (byte 0). It begins as UTF-16 does"),
    "Latin-1": (BASE.encode() + b"# caf\xe9", "is no text in UTF-8"),
    "binary": (bytes(range(256)), "is no text in UTF-8"),
    "zero bytes": (b"a: 1\0", "zero bytes"),
    "a list": (b"- a\n- b\n", "holds no options by name"),
    "a word": (b"hello", "holds no options by name"),
    "tabs": (b"model:\n\tlr: 1\n", "config.yaml:2: is no YAML"),
    "a key twice": (BASE.encode() + b"model: {lr: 1}\n", "config.yaml:4: model stands twice, the first time in line 2"),
    "a nested key twice": (
        BASE.replace("input_size: 96", "lr: 0.005, lr: 0.5").encode(), "config.yaml:2: lr stands twice"),
    "anchors that multiply": (bomb().encode() + BASE.encode(), "stands for more than 200,000 values"),
    "long texts that multiply": (
        (f"a: &a {'x' * 9000}\nb: [{', '.join(['*a'] * 9000)}]\n" + BASE).encode(), "20,000,000 characters"),
    "an anchor in itself": (b"a: &a\n  b: *a\n" + BASE.encode(), "or in itself"),
    "very deep": (b"a: " + b"[" * 3000 + b"]" * 3000, "config.yaml"),
    "many unknown keys": (
        BASE.encode() + b"".join(b"key_%d_of_very_many: 1\n" % i for i in range(2_000)), "and 1990 more keys"),
    "too large": (b"a: " + b"x" * 11_000_000, "11 MB"),
    "code": (BASE.encode() + b"record: !!python/object/apply:os.system [ls]\n", "config.yaml:4: is no YAML"),
    "a number too long": (BASE.encode() + b"seed_everything: " + b"9" * 6000, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_configuration(tmp_path, capsys, kind):
    content, words = FILES[kind]
    (tmp_path / "config.yaml").write_bytes(content)
    assert words in refused(capsys, "fit", "--config", str(tmp_path / "config.yaml"))


@pytest.mark.slow
def test_two_megabytes_of_unknown_keys_do_not_take_a_minute(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(BASE + "".join(f"key_{i}_of_very_many: 1\n" for i in range(80_000)))
    start = time.perf_counter()
    assert "and 79990 more keys" in refused(capsys, "fit", "--config", str(tmp_path / "config.yaml"))
    assert time.perf_counter() - start < 30


def test_all_errors_of_a_configuration_are_named(tmp_path, capsys):
    text = BASE.replace("max_epochs: 1", "max_epochs: many").replace(
        "input_size: 96", "input_size: 96, lr: fast, label_smoothing: 2, momentum: 3, freeze_epoch: 1"
    )
    (tmp_path / "config.yaml").write_text(text + "overlay: {num_images: 1}\nrecord: {reports: true}\n")
    error = refused(capsys, "fit", "--config", str(tmp_path / "config.yaml"))
    for words in (
        "config.yaml:2: model.freeze_epoch is no option. Did you mean model.freeze_epochs?",
        "config.yaml:4: overlay is no option. Did you mean overlays?",
        "config.yaml:5: record.reports is no option. Did you mean record.report?",
        'key "trainer.max_epochs": Expected int', 'key "model.lr": Expected float',
        "label_smoothing=2 must be in [0, 1)", "momentum=3 must be in [0, 1)",
    ):  # fmt: skip
        assert words in error


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + BASE.encode(), BASE.replace("\n", "\r\n").encode(),
                                     b"x: &x {max_epochs: 1, accelerator: cpu}\n" + BASE.encode()])  # fmt: skip
def test_what_editors_write_is_read(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_bytes(content)
    arguments = ["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"]
    if b"&x" in content:
        assert "config.yaml:1: x is no option" in refused(capsys, *arguments)
        return
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


# ---------------------------------------------------------------- machines and code


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("command", "words", "code"),
    [
        ("convert camify/tiny_vgg OUT --head direct --input_size 96", "OUT: cannot be written", 2),
        ("explain IMAGES --model M --out OUT --workers 0", "OUT/0_cam.png: cannot be written (File too large)", 1),
        ("compare IMAGES --model M --out OUT --method cam", "OUT: cannot be written (File too large)", 1),
        pytest.param("export M --to onnx --out OUT.onnx", "OUT.onnx: cannot be written", 2, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_no_more(place, tmp_path, capsys, small_files, command, words, code):
    named = {"OUT": str(tmp_path / "out"), "IMAGES": str(place / "images"), "M": str(place / "model")}
    arguments = [named.get(word, word).replace("OUT.onnx", f"{tmp_path}/out.onnx") for word in command.split(" ")]
    error = refused(capsys, *arguments, code=code)
    assert words.replace("OUT", str(tmp_path / "out")) in error
    assert error.count("cannot be written") == 1, "said once"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_what_errors_of_the_system_become():
    full = explained(OSError(errno.ENOSPC, "No space left on device", "/tmp/x/y.png"))
    assert full.code == 1
    assert full.message.startswith("/tmp/x/y.png: cannot be written (No space left on device). Free space there: ")
    assert explained(OSError(errno.ENOSPC, "No space left on device")).message.startswith("A file cannot be written")
    assert explained(FileNotFoundError(2, "No such file", "/x"))[:2] == ("/x: no such file or folder.", 2)
    assert explained(PermissionError(13, "Permission denied", "/x")).code == 2
    assert explained(MisconfigurationException("no such thing")).message.startswith("no such thing")
    assert explained(SafetensorError("Error while serializing: No space left (os error 28)")).code == 1
    assert (
        "loading process" in explained(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")).message
    )
    assert explained(RuntimeError("anything")) is None
    assert explained(KeyError("x")) is None


def test_out_of_memory_says_the_batch():
    def forward(images):
        return torch.empty(10**15)

    def step(batch):
        forward(batch.images)

    with pytest.raises(RuntimeError) as caught:
        forward(torch.zeros(3, 3, 20, 30))
    failure = explained(caught.value)
    assert failure.code == 1
    assert failure.message.startswith("Out of memory with a batch of 3 images of 20 x 30 px. Give smaller batches")
    with pytest.raises(RuntimeError) as caught:
        step(Batch(torch.zeros(5, 3, 8, 8)))
    assert "5 images of 8 x 8 px" in explained(caught.value).message
    assert explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).code == 1
    assert explained(MemoryError()).code == 1


def test_ctrl_c_is_130(place, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("camify.cli.networks.resolve", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["convert", "camify/tiny_vgg", str(place / "out")])
    assert left.value.code == 130
    assert capsys.readouterr().err == "camify: stopped.\n"


@pytest.mark.parametrize(
    "kind", [RuntimeError, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (ValueError, OSError, KeyError))]
)
def test_a_users_own_error_keeps_its_traceback(place, tmp_path, capsys, monkeypatch, kind):
    def raises(*_):
        raise kind("mine")

    monkeypatch.setattr(RunRecord, "on_train_start", raises)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(kind, match="mine") as caught:
        main(["fit", "--config", str(place / "config.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")])
    sys.excepthook(kind, caught.value, caught.value.__traceback__)
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "code that is not camify's" in error


def test_an_error_of_camify_asks_for_a_report(place, capsys, monkeypatch):
    names = {}
    exec(compile("def broken(*_, **__):\n    return {}['\\x1b[2J']\n", str(PACKAGE / "broken.py"), "exec"), names)
    monkeypatch.setattr("camify.cli.networks.resolve", names["broken"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(KeyError) as caught:
        main(["convert", "camify/tiny_vgg", str(place / "out")])
    sys.excepthook(KeyError, caught.value, caught.value.__traceback__)
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "Please report it" in error.splitlines()[-1]
    assert "\x1b" not in error


def test_debugging_keeps_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("CAMIFY_DEBUG", "1")
    with pytest.raises(SystemExit) as left:
        main(["inspect", "nothing"])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("camify: error: source 'nothing'")


def test_an_error_out_of_a_loading_process_comes_without_its_traceback():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 3, in fetch\n    raise\ncamify.errors.DataError: a.png: cannot be read.\nSee b.\n'
    )
    assert explained(DataError(text)).message == "a.png: cannot be read.\nSee b."


def test_an_error_over_an_error_is_not_hidden_by_it():
    names = {"ConfigError": ConfigError}
    code = (
        "def broken():\n    try:\n        raise ConfigError('first')\n    except ConfigError:\n        return {}['x']\n"
    )
    exec(compile(code, str(PACKAGE / "broken.py"), "exec"), names)
    with pytest.raises(KeyError) as caught:
        names["broken"]()
    assert explained(caught.value) is None
    assert failures.camify_error_in(caught.value) is None


# ---------------------------------------------------------------- places


def test_places_are_tried_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    require_writable(tmp_path / "new" / "deep" / "file.html", "--out")
    require_writable(tmp_path / "folder", "--out", folder=True)
    for path, folder, words in (
        (tmp_path / "file", True, "it is a file"), (tmp_path / "folder", False, "it is a folder"),
        (tmp_path / "file" / "x", False, "file is a file"), (tmp_path / ("x" * 256), False, "name too long"),
        (tmp_path / "new" / ("é" * 128), True, "longer than 255 bytes"), (tmp_path / "a\0b", False, "zero byte"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"(?i)--out .*cannot be written: .*{words}"):
            require_writable(path, "--out", folder=folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_that_cannot_be_written_is_named(tmp_path, small_files):
    with pytest.raises(OSError, match="too large") as caught:
        write_whole(tmp_path / "page.html", b"x" * 100_000)
    assert caught.value.filename == os.fspath(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [camify.convert, camify.inspect, camify.CAMFineTuner, camify.export,
                                  lambda value: camify.explain(value, torch.zeros(1, 3, 8, 8)),
                                  lambda value: camify.evaluate(value, "data")])  # fmt: skip
@pytest.mark.parametrize("value", [None, 3, [], b"x"])
def test_what_is_no_network_is_a_sentence(call, value):
    if call is camify.export:
        call = lambda value: camify.export(value, "model.onnx")  # noqa: E731
    with pytest.raises(ConfigError, match=r"network|CAMNet"):
        call(value)
