"""Promise 7: a finished-looking file is complete, on every filesystem; what killed processes left is removed."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

import camify
from camify.errors import CamifyError, CheckpointError, ConfigError
from camify.exporters import open_exported
from camify.files import lock, remove_leftovers, temporary_folder, whole_file, whole_folder, write_whole
from camify.training.checkpoint_files import WholeCheckpoints, read_checkpoint
from camify.training.feature_cache import _reserve

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # another filesystem than the folder for temporary files


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def python(code, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **options)


def killed(code, *arguments, after):
    """Start Python code that prints a line when it begins, kill it so many seconds later."""
    with python(code, *arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        time.sleep(after)
        process.kill()
    return process.returncode


# ------------------------------------------------------------ files and folders


class Stopped(Exception):
    pass


def stopped(file, folder):
    with whole_file(file) as content, whole_folder(folder) as aside, temporary_folder(folder) as cache:
        content.write(b"half")
        (aside / "a").write_text("half")
        (cache / "a").write_text("half")
        raise Stopped


def test_where_filling_fails_nothing_changes(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("before")
    folder.mkdir()
    (folder / "a").write_text("before")
    with pytest.raises(Stopped):
        stopped(file, folder)
    assert file.read_text() == (folder / "a").read_text() == "before"
    assert hidden(tmp_path) == []


def test_modes_are_what_the_mask_allows(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        os.umask(0o027)
        from camify.files import whole_folder, write_whole
        write_whole(Path(sys.argv[1], "file"), "x")
        with whole_folder(Path(sys.argv[1], "folder")) as aside:
            (aside / "a").touch()
    """
    assert python(code, tmp_path).wait() == 0
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("file", "folder")] == ["0o640", "0o750"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a b [c] *?"])
def test_names_as_long_as_a_filesystem_allows(tmp_path, name):
    write_whole(tmp_path / name, "1")
    assert (tmp_path / name).read_text() == "1"
    (tmp_path / name).unlink()
    for _ in range(2):
        with whole_folder(tmp_path / name) as aside:
            (aside / "a").touch()
    assert os.listdir(tmp_path) == [name]


WRITES = """
    import sys
    from pathlib import Path
    from camify.files import whole_file
    path, number = Path(sys.argv[1]), 0
    print("begun", flush=True)
    while True:
        number += 1
        with whole_file(path) as file:
            for _ in range(400):
                file.write(f"{number:08d}".encode() * 128)
"""


@pytest.mark.parametrize("folder", ["temporary", "memory"])
def test_a_killed_writer_leaves_a_whole_file_and_the_next_one_cleans_up(tmp_path, folder):
    if folder == "memory":
        if not MEMORY.is_dir():
            pytest.skip("this machine has no filesystem in memory")
        tmp_path = MEMORY / f"camify-test-{os.getpid()}"
        tmp_path.mkdir()
    path, left = tmp_path / "big", 0
    try:
        for moment in range(4):
            assert killed(WRITES, path, after=0.05 + 0.013 * moment) == -signal.SIGKILL
            content = path.read_bytes()
            assert len(content) == 8 * 128 * 400
            assert content == content[:8] * 128 * 400
            left += len(hidden(tmp_path))
        remove_leftovers(path)
        assert hidden(tmp_path) == []
    finally:
        for entry in [*tmp_path.iterdir()] if folder == "memory" else []:
            entry.unlink()
        if folder == "memory":
            tmp_path.rmdir()


def test_the_piece_of_a_living_writer_stays(tmp_path):
    with whole_file(tmp_path / "a") as file:
        remove_leftovers(tmp_path / "a")
        assert len(hidden(tmp_path)) == 1
        file.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    (tmp_path / ".a-abcdefgh.camify.part").touch()  # of a dead one
    (tmp_path / ".a-mine.part").touch()  # of somebody else
    (tmp_path / ".ab-abcdefgh.camify.part").touch()  # beside another file
    write_whole(tmp_path / "b", "1")
    assert hidden(tmp_path) == [".a-mine.part"]


def test_a_lock_goes_with_its_process(tmp_path):
    path = tmp_path / "held"
    path.touch()
    first = lock(path)
    assert first is not None
    assert lock(path) is None
    os.close(first)
    second = lock(path)
    assert second is not None
    os.close(second)


def test_many_writers_of_one_file_do_not_remove_each_others_pieces(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from camify.files import whole_file, whole_folder
        for number in range(60):
            with whole_file(Path(sys.argv[1], "file")) as file:
                file.write(sys.argv[2].encode() * 1000)
    """
    writers = [python(code, tmp_path, letter) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert set((tmp_path / "file").read_text()) in ({"a"}, {"b"}, {"c"})
    assert hidden(tmp_path) == []


# ------------------------------------------------------------ a full disk


@contextmanager
def full_disk():
    """A limit of the size of files stands for it: writes fail half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def large():
    """A network whose file is larger than that."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3, 4), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.AdaptiveAvgPool2d(1)
    net = camify.convert(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2)), head="direct", input_size=32)
    net.preprocessing = camify.preprocessing.Preprocessing(32)
    return net


WRITERS = {
    "last.ckpt": lambda net, path: WholeCheckpoints().save_checkpoint({"state_dict": net.state_dict()}, path),
    "export": lambda net, path: net.save_pretrained(path),
    "net.onnx": lambda net, path: camify.export(net, path, overwrite=True),
    "net.pt2": lambda net, path: camify.export(net, path, overwrite=True),
}
READERS = {
    "last.ckpt": lambda path: read_checkpoint(path)["state_dict"],
    "export": lambda path: camify.load(path),
    "net.onnx": lambda path: open_exported(path)(torch.zeros(1, 3, 32, 32)),
    "net.pt2": lambda path: open_exported(path)(torch.zeros(1, 3, 32, 32)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "net.onnx" else name for name in WRITERS]
)
def test_on_a_full_disk_the_former_one_stays_whole(large, tmp_path, name):
    path = tmp_path / name
    WRITERS[name](large, path)
    with full_disk(), pytest.raises(CamifyError, match=f"{name}.*cannot be written"):
        WRITERS[name](large, path)
    assert READERS[name](path)
    assert hidden(tmp_path) == []


def test_a_feature_cache_that_the_disk_has_no_room_for_is_refused_by_name(tmp_path):
    with full_disk(), pytest.raises(ConfigError, match=r"feature_cache: 0\.00 GB cannot be written .*; free: "):
        _reserve(tmp_path / "features", 1_000_000)


# ------------------------------------------------------------ checkpoints of training


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightnings_own_checkpoints_are_written_so(tmp_path):
    class Saves(pl.Callback):
        def on_train_start(self, trainer, module):
            assert type(trainer.strategy.checkpoint_io) is WholeCheckpoints

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    module = camify.CAMFineTuner(net, ["a", "b"], head="direct", input_size=32, grid_mosaics=1)
    images = torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32), torch.tensor([0, 1] * 4))
    loader = torch.utils.data.DataLoader(images, batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[Saves()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert read_checkpoint(tmp_path / "own.ckpt")["global_step"] == 2


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is no checkpoint of training"):
        read_checkpoint(tmp_path / "other.pth")


TRAINS = """
    import sys, warnings
    warnings.simplefilter("ignore")
    from camify.cli.train import main
    print("begun", flush=True)
    main(["fit", "--config", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_keeps_whole_checkpoints(tmp_path):
    """On another filesystem than the temporary folder, where Lightning's own way copies over the good one."""
    if not MEMORY.is_dir():
        pytest.skip("this machine has no filesystem in memory")
    folder = MEMORY / f"camify-test-{os.getpid()}"
    config = tmp_path / "config.yaml"
    moments, kept = random.Random(0), 0
    try:
        for number in range(20):
            run = folder / f"run-{number}"
            config.write_text(
                f"trainer: {{max_epochs: 50, accelerator: cpu, default_root_dir: {run}, enable_progress_bar: false}}\n"
                "model: {model: camify/tiny_vgg, input_size: 96, grid_mosaics: 1}\n"
                "data: {class_path: ShapesDataModule, init_args: {train_count: 12, val_count: 6, batch_size: 6}}\n"
                "overlays: {num_images: 1}\nrecord: {quiet: true}\n"
            )
            killed(TRAINS, config, after=5 + 6 * moments.random())
            for path in run.glob("*.ckpt"):
                read_checkpoint(path)
                kept += 1
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert kept >= 20


WORKS = """
    import sys, warnings
    warnings.simplefilter("ignore")
    from pathlib import Path
    import torch, camify
    from camify.cli.train import main as train
    from camify.cli.commands import main
    kind, out, photos = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    net = camify.convert("camify/tiny_vgg@demo", head="direct", input_size=96, seed=0)
    print("begun", flush=True)
    while True:
        if kind == "save":
            net.save_pretrained(out / "net")
        elif kind == "export":
            camify.export(net, out / "model.onnx", input_size=96, overwrite=True)
        elif kind == "explain":
            place = ["--out", str(out / "explained")]
            main(["explain", photos, "--model", "camify/tiny_vgg@demo", "--method", "gradcam", *place])
            break
        else:
            train(["fit", "--config", str(out / "config.yaml")])
            break
"""


@pytest.fixture(params=["temporary", "memory"])
def out(request, tmp_path):
    """A folder for results, on the filesystem of the temporary folder and on another one."""
    folder = tmp_path / "out" if request.param == "temporary" else MEMORY / f"camify-test-{os.getpid()}"
    if request.param == "memory" and not MEMORY.is_dir():
        pytest.skip("this machine has no filesystem in memory")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def work_for(out, photos):
    photos.mkdir()
    for number in range(40):
        pixels = torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(photos / f"{number}.png")
    (out / "config.yaml").write_text(
        f"trainer: {{max_epochs: 4, accelerator: cpu, default_root_dir: {out / 'run'}, enable_progress_bar: false}}\n"
        "model: {model: camify/tiny_vgg, input_size: 96, grid_mosaics: 1, freeze_epochs: 4, feature_cache: disk}\n"
        "data:\n  class_path: ShapesDataModule\n"
        "  init_args: {train_count: 60, val_count: 6, batch_size: 6, augment: none}\n"
        "overlays: {num_images: 1}\nrecord: {quiet: true}\n"
    )


def whole(out):
    """Whether everything that has its name can be read."""
    if (out / "net").exists():
        camify.load(out / "net")
    if (out / "model.onnx").exists():
        open_exported(out / "model.onnx")
    for path in out.glob("run*/*.ckpt"):
        read_checkpoint(path)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["save", "export", "explain", "cache"])
def test_work_killed_at_any_moment_leaves_nothing_half(tmp_path, out, kind):
    """Saving, exporting, explaining, caching: what has its name is whole, the next run cleans up and ends the work."""
    work_for(out, tmp_path / "photos")
    moments = random.Random(1)
    for _ in range(5):
        killed(WORKS, kind, out, tmp_path / "photos", after=0.2 + 2.5 * moments.random())
        assert whole(out)
    if kind in ("explain", "cache"):
        with python(WORKS, kind, out, tmp_path / "photos") as process:
            assert process.wait() == 0
        assert whole(out)
    if kind == "explain":
        rows = [json.loads(line) for line in (out / "explained" / "results.jsonl").read_text().splitlines()]
        assert sorted(row["name"] for row in rows) == sorted(str(number) for number in range(40))
        assert all((out / "explained" / row["picture"]).is_file() for row in rows)
    for path in (out / "net", out / "model.onnx"):  # the next writer does so
        remove_leftovers(path)
    assert not list(out.rglob("*.camify.part"))


def test_errors_of_writing_are_camifys(tmp_path):
    (tmp_path / "file").write_text("")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = camify.convert(net, head="direct", input_size=32)
    with pytest.raises(CamifyError, match="file"):
        model.save_pretrained(tmp_path / "file" / "below")
