"""``camify explain`` goes on only where the same images are explained by the same network, and loses no line."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.explained_folder import LOCK, model_sha256
from camify.evaluation.network import explained_network
from camify.files import lock
from camify.sources import Source
from camify.sources.demo_network import TinyVGG

PREPROCESSING = camify.Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network(seed=0):
    torch.manual_seed(seed)
    net = camify.convert(TinyVGG(4), head="direct", input_size=96, seed=seed).eval()
    net.preprocessing, net.class_names = PREPROCESSING, ["ant", "bee", "cat", "dog"]
    return net


@pytest.fixture(scope="module")
def net():
    return network()


def photo(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    return [photo(tmp_path / "a" / f"{index}.png", index) for index in range(5)]


def run(net, files, out, **options):
    source = Source(net, "here", net.class_names, preprocessing=PREPROCESSING)
    return explain_files(explained_network(source, "here", ["cam"]), files, out, ExplainOptions(), **options)


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_photograph_of_the_same_name_from_another_folder_is_explained(net, tmp_path, monkeypatch):
    one, other = photo(tmp_path / "a" / "photo.png", 1), photo(tmp_path / "b" / "photo.png", 2)
    out, relative = tmp_path / "out", type(one)("photo.png")
    monkeypatch.chdir(one.parent)
    assert run(net, [relative], out).results == 1
    monkeypatch.chdir(other.parent)
    done = run(net, [relative], out)
    assert (done.results, done.before) == (1, 0)
    first, second = lines(out)
    assert [first["name"], second["name"]] == ["photo", "photo_2"]
    assert [first["file"]["path"], second["file"]["path"]] == [str(one.resolve()), str(other.resolve())]
    logits = [row["classes"][0]["logit"] for row in (first, second)]
    with torch.no_grad():
        expected = [float(net(PREPROCESSING.read(path)[None]).max()) for path in (one, other)]
    assert logits == pytest.approx(expected, abs=1e-4)
    assert run(net, [one, other], out).before == 2, "by whatever path they are named"


def test_a_photograph_that_changed_is_explained_again_in_place_of_the_old_one(net, photos, tmp_path):
    out = tmp_path / "out"
    run(net, photos, out)
    before = (out / "1.npy").read_bytes()
    photo(photos[1], 99)
    os.utime(photos[1], ns=(1, 1))
    done = run(net, photos, out)
    assert (done.results, done.before) == (1, 4)
    rows = lines(out)
    assert sorted(row["name"] for row in rows) == ["0", "1", "2", "3", "4"]
    assert (out / "1.npy").read_bytes() != before
    os.utime(photos[2], ns=(1, 1))
    assert run(net, photos, out).results == 1, "its time alone says that it may have changed"


def test_a_retrained_network_behind_the_same_name_is_refused(net, photos, tmp_path):
    out = tmp_path / "out"
    run(net, photos[:3], out)
    before = (out / "results.jsonl").read_bytes()
    retrained = network()
    with torch.no_grad():
        retrained.classifier.bias[0] += 1e-3
    with pytest.raises(camify.ConfigError, match=r"out: was made with other weights of here.*--overwrite"):
        run(retrained, photos, out)
    assert (out / "results.jsonl").read_bytes() == before
    assert run(retrained, photos, out, overwrite=True).results == 5
    assert len(lines(out)) == 5
    assert json.loads((out / "explain.json").read_text())["model_sha256"] == model_sha256(retrained)


def test_the_hash_is_of_tensors_and_layers_not_of_their_layout(net):
    assert model_sha256(net) == model_sha256(network())
    assert model_sha256(net) == model_sha256(network().to(memory_format=torch.channels_last))
    assert model_sha256(net) != model_sha256(network(1))
    assert model_sha256(torch.nn.Sequential(torch.nn.ReLU())) != model_sha256(torch.nn.Sequential(torch.nn.GELU()))


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_another_export_behind_the_same_name_is_refused(net, photos, tmp_path, suffix, capsys):
    file, out = tmp_path / f"model{suffix}", tmp_path / "out"
    camify.export(net, file)
    arguments = ["explain", str(photos[0]), "--model", str(file), "--out", str(out), "--device", "cpu"]
    main(arguments)
    other = network()
    with torch.no_grad():
        other.features[0].weight.mul_(1.5)
    camify.export(other, file, overwrite=True)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "other weights" in capsys.readouterr().err


def test_two_at_once_on_one_folder_are_refused(net, photos, tmp_path):
    out, refusals = tmp_path / "out", []

    def starts_another(batches, *_):
        for batch in batches:
            yield batch
            try:
                run(net, photos, out)
            except camify.ConfigError as error:
                refusals.append(str(error))

    done = run(net, photos, out, batch_size=2, progress=starts_another)
    assert done.results == 5
    assert len(refusals) == 3
    assert all("another camify explain is writing there" in refusal for refusal in refusals)
    assert sorted(row["name"] for row in lines(out)) == ["0", "1", "2", "3", "4"]
    assert run(net, photos, out).before == 5, "the lock is gone"
    descriptor = lock(out / LOCK)
    with pytest.raises(camify.ConfigError, match="another camify explain"):
        run(net, photos, out)
    os.close(descriptor)


DAMAGES = [
    b"", b"{", b"[]", b"null", b"7", b'"text"', b"{}", b'{"image": 1}', b"\xff\xfe\x00", b"[" * 100_000,
    b'{"image": "x", "name": ["y"], "picture": "p", "raw_maps": "m", "classes": []}',
    b'{"image": "x", "name": "../../y", "picture": "/etc/passwd", "raw_maps": "/etc/passwd", "classes": []}',
    b'{"image": "x", "name": "0", "picture": "0_cam.png", "raw_maps": "0.npy", "classes": [], "file": 3}',
    b'{"image": "x", "name": "0", "picture": "0_cam.png\\u0000", "raw_maps": "0.npy", "classes": []}',
]  # fmt: skip


@pytest.fixture(scope="module")
def three_explained(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    photos = [photo(folder / "a" / f"{index}.png", index) for index in range(3)]
    run(net, photos, folder / "out", batch_size=1)
    return photos, folder / "out"


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_line_is_done_again(net, three_explained, tmp_path, damage):
    photos, explained = three_explained
    out = shutil.copytree(explained, tmp_path / "out")
    whole = (out / "results.jsonl").read_bytes().splitlines()
    (out / "results.jsonl").write_bytes(b"\n".join([whole[0], damage, whole[2]]) + b"\n")
    done = run(net, photos, out, batch_size=1)
    assert (done.results, done.before) == (1, 2)
    assert {json.dumps(row) for row in lines(out)} == {line.decode() for line in whole}


def test_pictures_that_were_removed_are_drawn_again(net, photos, tmp_path):
    out = tmp_path / "out"
    run(net, photos, out)
    (out / "2_cam.png").unlink()
    assert run(net, photos, out).results == 1
    assert (out / "2_cam.png").is_file()


def test_every_unreadable_file_is_a_line_and_the_others_are_explained(net, photos, tmp_path, capsys):
    folder = net.save_pretrained(tmp_path / "model")
    bad = [photos[0].with_name(f"bad {index}.jpg") for index in range(8)]
    for path in bad:
        path.write_text("no image")
    os.mkfifo(photos[0].with_name("pipe.png"))
    arguments = [
        "explain",
        str(photos[0].parent),
        "--model",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    for expected in (0, 5):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 1
        printed = "".join(capsys.readouterr().out.split("\n"))
        assert "9 could not be read" in printed
        assert f"{5 - expected} of 14 images explained" in printed
        rows = lines(tmp_path / "out")
        errors = {row["image"]: row["error"] for row in rows if "error" in row}
        assert set(errors) == {*map(str, bad), str(photos[0].with_name("pipe.png"))}
        assert all("cannot be read as an image" in error for error in errors.values())
        assert len([row for row in rows if "classes" in row]) == 5
    for path in (*bad, photos[0].with_name("pipe.png")):
        path.unlink()
    main(arguments)
    assert not [row for row in lines(tmp_path / "out") if "error" in row], "of files that are gone"


def test_folders_of_the_version_before_go_on_and_say_what_was_assumed(net, photos, tmp_path):
    out = tmp_path / "out"
    run(net, photos[:3], out)
    settings = json.loads((out / "explain.json").read_text())
    del settings["model_sha256"]
    (out / "explain.json").write_text(json.dumps(settings))
    older = [{key: value for key, value in row.items() if key != "file"} for row in lines(out)]
    (out / "results.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in older))
    done = run(net, photos, out)
    assert (done.results, done.before) == (2, 3)
    assert "older camify" in done.notes[0]


def test_mutated_records_are_read_right_or_refused(net, photos, tmp_path):
    from tests.reliability.mutations import mutated

    whole = tmp_path / "whole"
    run(net, photos[:2], whole)
    chance = random.Random(5)
    for name in ("explain.json", "results.jsonl"):
        content = (whole / name).read_bytes()
        for _ in range(10):
            out = tmp_path / "out"
            shutil.copytree(whole, out)
            (out / name).write_bytes(mutated(content, chance))
            refusal = None
            try:
                done = run(net, photos[:2], out)
            except camify.errors.CamifyError as error:
                refusal = str(error)
            if refusal is not None:
                assert str(out) in refusal
            else:
                assert done.before + done.results == 2
                assert len(lines(out)) >= 2
            shutil.rmtree(out)
