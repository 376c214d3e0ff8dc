"""The folder of a Space holds all that it needs, and its app.py serves the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from importlib.metadata import version

import pytest
import yaml

from camify.app.space import write_space
from camify.checkpoint.model_card import hub_license
from camify.cli.commands import main
from camify.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def space(folder, tmp_path_factory):
    return write_space(folder, tmp_path_factory.mktemp("space") / "out", "someone/ants")


def settings(space):
    return yaml.safe_load((space / "README.md").read_text("utf-8").split("---")[1])


def test_the_settings_are_those_of_a_space(space):
    said = settings(space)
    assert (said["sdk"], said["sdk_version"], said["app_file"]) == ("gradio", version("gradio"), "app.py")
    assert said["title"] == "ants"
    assert said["license"] == "apache-2.0"


@pytest.mark.parametrize("name", [None, "as the authors like", "mit\nsdk: docker"])
def test_only_a_short_name_is_a_license_of_the_hub(name):
    assert hub_license(name) is None


def test_the_checkpoint_and_camify_itself_lie_in_it(space, folder):
    copied = {file.name: file.read_bytes() for file in (space / "models" / "ants").iterdir()}
    assert copied == {file.name: file.read_bytes() for file in folder.iterdir()}
    package = {path.relative_to(space / "camify") for path in (space / "camify").rglob("*")}
    assert {"app/page.css", "app/answer.html.j2", "sources/demo_legacy.safetensors"} <= {str(path) for path in package}
    assert not [path for path in package if "__pycache__" in path.parts]
    lines = (space / "requirements.txt").read_text().split()
    assert f"gradio=={version('gradio')}" in lines
    assert any(line.startswith("torch>=") for line in lines)
    assert not [line for line in lines if "extra" in line or "/" in line or line.startswith("camify")]


def test_what_is_there_is_not_touched(folder, space, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="did not write"):
        write_space(folder, tmp_path, "someone/ants")
    with pytest.raises(ConfigError, match="exists"):
        write_space(folder, space, "someone/ants")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_no_checkpoint_or_no_name_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"camify\.json"):
        write_space(tmp_path, tmp_path / "out", "someone/ants")
    with pytest.raises(ConfigError, match="USER/NAME"):
        write_space(folder, tmp_path / "out", "../ants")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_it_and_uploads_nothing(folder, tmp_path, capsys):
    main(["push", str(folder), "someone/ants", "--space", "true", "--out", str(tmp_path / "out")])
    assert "nothing uploaded" in capsys.readouterr().out
    assert (tmp_path / "out" / "app.py").is_file()
    with pytest.raises(SystemExit):
        main(["push", str(folder), "someone/ants", "--out", str(tmp_path / "other")])
    assert "--space true" in capsys.readouterr().err


@pytest.mark.slow
def test_its_app_serves_the_page_with_the_camify_beside_it(space, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "PYTHONPATH"))}
    environment |= {"GRADIO_SERVER_PORT": "7951", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(space / "app.py")], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        address = re.search(r"Page: (http://127\.0\.0\.1:7951/)", process.stdout.readline())[1]
        with urllib.request.urlopen(f"{address}config") as answer:
            page = answer.read().decode()
        process.terminate()
        assert process.wait(20) == 0
    assert "Threshold of the box" in page
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
