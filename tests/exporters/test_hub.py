"""The hub, by a local server that speaks its API: what is pushed comes back, and what was cached needs no network."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

import camify
from camify.checkpoint.hub import is_repository, push_folder
from camify.cli.commands import main
from camify.conversion.readiness import check
from camify.errors import CheckpointError, ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Of the hub's API: create, preupload, commit with the files inside, listing, download."""

    files: dict[str, bytes]
    created: list[bytes]

    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Request-Id": "1", **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            self.created.append(data)
            self.answer({"url": f"{url}/someone/model", "name": "someone/model"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(data)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, data.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{url}/someone/model/commit/{COMMIT}"}
            self.answer(answer)
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self):
        if "/tree/" in self.path:
            entries = self.files.items()
            tree = [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in entries]
            self.answer(tree)
        elif self.path.startswith("/api/models/someone/model"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "someone/model", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif self.path.startswith(f"/someone/model/resolve/{COMMIT}/"):
            content = self.files[self.path.rpartition("/")[2]]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    handler = type("Handler", (Hub,), {"files": {}, "created": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    disable_progress_bars()
    yield handler
    server.shutdown()
    server.server_close()


def test_what_is_pushed_comes_back_and_then_needs_no_network(hub, folder, net, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    main(["push", str(folder), "someone/model"])
    assert "someone/model" in capsys.readouterr().out
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.files["extra.py"] = b"never fetched"
    loaded = camify.CAMNet.from_pretrained("someone/model")
    assert loaded.class_names == net.class_names
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
    assert not list(tmp_path.rglob("extra.py"))
    hub.files.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert camify.load("someone/model").class_names == net.class_names
    assert all(finding.holds for finding in check("someone/model"))


def test_a_space_is_pushed_with_all_that_it_needs(hub, folder, capsys):
    pytest.importorskip("gradio", exc_type=ImportError)
    main(["push", str(folder), "someone/model", "--space", "true"])
    assert "someone/model" in capsys.readouterr().out
    created = json.loads(hub.created[-1])
    assert (created["type"], created["sdk"]) == ("space", "gradio")
    assert {"app.py", "README.md", "requirements.txt", "camify/boxes.py", "camify/app/page.css"} <= hub.files.keys()
    for path in folder.iterdir():
        assert hub.files[f"models/model/{path.name}"] == path.read_bytes()


def test_names_are_read_strictly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_repository("user/name")
    for name in ("user", "../name", "/user/name", "a/b/c", "user/", "user/..", "a b/c", ".hidden/name", Path("a/b")):
        assert not is_repository(name)
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert not is_repository("user/name")
    assert not is_repository("user/nama")  # a slip of the pen asks no server
    with pytest.raises(ConfigError, match="USER/NAME"):
        push_folder(tmp_path, "name")


def test_a_folder_that_is_not_whole_is_not_pushed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["push", str(tmp_path), "someone/model"])
    assert "camify.json" in capsys.readouterr().err


def test_what_cannot_be_had_is_said(monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="someone/model: is no folder here, and cannot be had"):
        camify.load("someone/model")
