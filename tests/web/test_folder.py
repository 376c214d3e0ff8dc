"""The folder of ``camify export --to web``: whole or not there, with the right files; the user's stay."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess

import pytest

import camify
from camify.boxes import DEFAULT_RULE, BoxRule
from camify.cli import main
from camify.errors import ConfigError, ConversionError
from camify.exporters import open_exported
from camify.files import WEB_PAGE
from camify.web import export_web, folder, runtime
from camify.web.folder import CODE, OWN_FILES, title_of
from tests.exporters.conftest import network
from tests.web.conftest import HOSTILE, write_runtime


@pytest.fixture
def quick(written, monkeypatch):
    """Exporting takes the file that is already there."""

    def copied(model, path, **options):
        path.write_bytes(written.exported.path.read_bytes())
        return written.exported

    monkeypatch.setattr(folder, "export", copied)


def sha384(path):
    return "sha384-" + base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()


def test_it_holds_all_that_a_browser_needs(net, written):
    place = written.path
    files = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    assert files == set(OWN_FILES)
    about = json.loads((place / WEB_PAGE).read_text())
    assert about["classes"] == net.class_names
    assert (about["task"], about["license"], about["input_size"]) == ("multiclass", "CC-BY 4.0", [32, 32])
    assert about["kinds"] == ["plain", "contrast"]
    assert BoxRule.from_dict(about["rule"]) == net.box_rule
    assert len(about["files"]) == 3
    for file in about["files"].values():
        path = place / file["url"]
        assert (sha384(path), path.stat().st_size) == (file["integrity"], file["bytes"])
    record = open_exported(place / "model.onnx").record
    assert record["input"]["kind"].startswith("uint8"), "the browser prepares nothing"
    assert (about["title"], about["source"]) == ("vgg16", "torchvision/vgg16@weights.pth")
    assert b"somebody" not in b"".join(path.read_bytes() for path in place.rglob("*.*"))
    assert net.certificate.source.endswith("@/home/somebody/weights.pth"), "the model stays as it is"
    said = str(written)
    assert "onnxruntime-web 9.9.9 beside the page" in said
    assert f"{sum(file['bytes'] for file in about['files'].values()) / 1e6:.1f} MB" in said


def test_what_users_wrote_is_text_and_other_servers_are_not_asked(page_folder, net):
    page = (page_folder / "index.html").read_text()
    assert HOSTILE not in page
    assert "unsafe" not in page
    assert "eval" not in page
    assert "https:" not in page
    code = "".join((page_folder / name).read_text() for name in CODE)
    assert "innerHTML" not in code
    assert "insertAdjacentHTML" not in code
    assert "document.write" not in code


def test_a_name_in_the_heading_is_escaped(net, written, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(folder, "title_of", lambda source: HOSTILE)
    page = (export_web(net, tmp_path / "page").path / "index.html").read_text()
    assert HOSTILE not in page
    assert "&lt;img src=x" in page


def test_from_a_public_server_the_hashes_are_those_of_npm(net, tmp_path, quick):
    result = export_web(net, tmp_path / "page")
    about = json.loads((result.path / WEB_PAGE).read_text())
    script, wasm = about["files"]["script"], about["files"]["wasm"]
    for file in (script, wasm):
        assert file["url"].startswith(f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{runtime.RUNTIME_VERSION}/dist/")
        assert len(base64.b64decode(file["integrity"].removeprefix("sha384-"))) == 48
    assert not (result.path / "runtime").exists()
    assert "connect-src 'self' blob: https://cdn.jsdelivr.net;" in (result.path / "index.html").read_text()
    assert "from https://cdn.jsdelivr.net, by its hashes" in str(result)


@pytest.mark.slow
def test_the_stored_hashes_are_those_of_the_package(node_modules):
    """Against openssl, on the files that npm delivers."""
    published = runtime.published_runtime()
    for file in published.files:
        path = node_modules / "onnxruntime-web" / "dist" / file.name
        command = ["openssl", "dgst", "-sha384", "-binary", str(path)]
        digest = subprocess.run(command, check=True, capture_output=True).stdout
        assert file.integrity == f"sha384-{base64.b64encode(digest).decode()}"
        assert file.bytes == path.stat().st_size
    assert runtime.runtime_of(node_modules / "onnxruntime-web").files == published.files


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda dist: (dist / runtime.WASM).unlink(), "has no ort-wasm-simd-threaded.wasm"),
        (lambda dist: (dist / runtime.WASM).write_text("<html>"), "wasm: is no file of onnxruntime-web"),
        (lambda dist: (dist / runtime.SCRIPT).write_text("export {}"), "mjs: is no file of onnxruntime-web"),
    ],
)
def test_a_runtime_that_is_none_is_refused(net, tmp_path, damage, words):
    dist = write_runtime(tmp_path / "package" / "dist")
    damage(dist)
    with pytest.raises(ConfigError, match=words):
        export_web(net, tmp_path / "page", runtime=tmp_path / "package")
    assert not (tmp_path / "page").exists()


def test_a_damaged_file_of_the_known_version_is_refused(tmp_path):
    dist = write_runtime(tmp_path / "dist", runtime.RUNTIME_VERSION)
    with pytest.raises(ConfigError, match="is not the file of version"):
        runtime.runtime_of(dist)


def test_what_is_not_its_own_is_not_touched(net, page_folder, quick, capsys, folder_of_model):
    with pytest.raises(ConfigError, match=r"page: exists.*overwrite"):
        export_web(net, page_folder)
    (page_folder / "style.css").write_text("")
    export_web(net, page_folder, overwrite=True)
    assert "--accent" in (page_folder / "style.css").read_text()
    assert not (page_folder / "runtime").exists(), "the whole folder is replaced"
    (page_folder / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in page_folder.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds mine\.txt, which camify did not write"):
        export_web(net, page_folder, overwrite=True)
    with pytest.raises(SystemExit):
        main(["export", str(folder_of_model), "--to", "web", "--out", str(page_folder), "--overwrite", "true"])
    assert "holds mine.txt" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in page_folder.iterdir() if path.is_file()} == before


@pytest.fixture(scope="module")
def folder_of_model(net, tmp_path_factory):
    return net.save_pretrained(tmp_path_factory.mktemp("model") / "net")


def test_where_writing_fails_nothing_is_left(net, tmp_path, monkeypatch, quick):
    def full(path, about, engine):
        (path / "index.html").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(OSError, match="No space"):
        export_web(net, tmp_path / "page")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_takes_no_pictures_is_refused(tmp_path, written, quick, monkeypatch):
    made = network()
    made.preprocessing = None
    with pytest.raises(ConfigError, match=r"how a picture becomes the input.*Set model\.preprocessing"):
        export_web(made, tmp_path / "page")
    made.preprocessing = {"size": 32, "mean": [0.5] * 5, "std": [0.5] * 5}
    with pytest.raises(ConfigError, match="takes 5 channels"):
        export_web(made, tmp_path / "page")
    with pytest.raises(ConfigError, match="takes 5 channels"):
        camify.export(made, tmp_path / "model.onnx", preprocess=True)
    with pytest.raises(ConfigError, match=r"takes a CAMNet, not a Linear"):
        export_web(made.classifier, tmp_path / "page")
    made = network()
    record = {**open_exported(written.exported.path).record, "dynamic": ["height", "width"]}
    monkeypatch.setattr(folder, "open_exported", lambda path: type("File", (), {"record": record}))
    with pytest.raises(ConversionError, match="batches of one fixed size"):
        export_web(made, tmp_path / "page")
    assert list(tmp_path.iterdir()) == []


def test_a_rule_beyond_the_files_maps_is_said(tmp_path, quick):
    made = network()
    made.box_rule = BoxRule(threshold=0.3, map_stride=4)
    result = export_web(made, tmp_path / "finer")
    assert json.loads((result.path / WEB_PAGE).read_text())["rule"]["map_stride"] is None
    assert "its own are coarser" in str(result)
    made.box_rule = BoxRule(threshold=0.3, clamp_weights=True)
    result = export_web(made, tmp_path / "clamped")
    assert BoxRule.from_dict(json.loads((result.path / WEB_PAGE).read_text())["rule"]) == DEFAULT_RULE
    assert "the default rule cuts boxes" in str(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onnx", "--runtime", "dist"], "only --to web runs in a browser"),
        (["--to", "web", "--boxes", "true"], "the page makes boxes itself"),
        (["--to", "web", "--dynamic", "false"], "pictures of any size"),
        (["--to", "web", "--runtime", "nowhere"], "nowhere: has no ort.wasm.bundle.min.mjs and no"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder_of_model, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit):
        main(["export", str(folder_of_model), "--out", str(tmp_path / "out"), *options])
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_beside_the_checkpoint(folder_of_model, quick, capsys):
    main(["export", str(folder_of_model), "--to", "web"])
    place = folder_of_model.with_name("net-web")
    assert (place / "index.html").is_file()
    assert "python -m http.server" in capsys.readouterr().out


def test_titles_are_names_without_where_they_are():
    assert (title_of("timm/resnet18.a1_in1k"), title_of("hf:user/name")) == ("resnet18.a1_in1k", "name")
