"""A Hugging Face Space of the page: its folder, which holds all that it needs, camify itself among it."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from sys import version_info

from ..checkpoint.folder import OWN_FILES
from ..checkpoint.hub import require_repository_name
from ..checkpoint.model_card import hub_license
from ..errors import ConfigError
from ..files import free_folder, whole_folder
from ..model import CAMNet

__all__ = ["write_space"]

_PACKAGE = Path(__file__).parents[1]
_APP = '''\
"""The page of {name}: `python app.py` serves it. Written by camify {version}."""

import os
from pathlib import Path

from camify.app.networks import open_networks
from camify.app.page import serve, wait_until_stopped

# A Space sets this address, as its container is reached from outside. Elsewhere this machine alone reaches the page.
host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
networks = open_networks([str(Path(__file__).parent / "models" / "{model}")])
with serve(networks, host=host, port=int(port), title="{model}") as address:
    print(f"Page: {{address}}", flush=True)
    wait_until_stopped()
'''
_README = """\
---
title: "{model}"
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
{license_line}tags: [image-classification, class-activation-maps]
---

# {model}

Give it a picture: it says what it sees, and shows the map of any class over the picture, with the box that a threshold
makes of it. The network is in `models/{model}`, a checkpoint folder of camify; its card says what it was made of.

License of the weights: {license_text}.

`camify/` is camify {version}, as it was where this Space was written; `requirements.txt` lists what it needs. Here:
`pip install -r requirements.txt` and `python app.py`.
"""


def write_space(folder: str | Path, out: str | Path, name: str) -> Path:
    """Write the folder of a Space that shows a checkpoint folder; nothing is uploaded.

    It holds ``app.py``, ``README.md`` with the Space's settings, ``requirements.txt``, the checkpoint below
    ``models/``, and the installed camify as plain files: so it runs the version that wrote it, wherever that came from.
    Pictures are not among it.

    Args:
        folder: a checkpoint folder.
        out: folder to write; new or empty.
        name: ``user/name`` of the Space.

    Raises:
        CheckpointError: the checkpoint is not whole.
        ConfigError: the name is none, Gradio is not installed, or ``out`` holds something.
    """
    require_repository_name(name)
    network, out = CAMNet.from_pretrained(Path(folder)), Path(out)
    model, own_version = name.partition("/")[2], version("camify")
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise ConfigError("A Space says which gradio it runs. Install it: pip install 'camify[app]'") from error
    free_folder(out, "app.py", (), "--out", overwrite=False)
    license_name = hub_license(network.license)
    words = {
        "name": name, "model": model, "version": own_version, "gradio": gradio,
        "python": f"{version_info.major}.{version_info.minor}",
        "license_line": "" if license_name is None else f"license: {license_name}\n",
        "license_text": license_name or "see the card of the checkpoint",
    }  # fmt: skip
    with whole_folder(out) as aside:
        (aside / "models" / model).mkdir(parents=True)
        for file in OWN_FILES:
            if (Path(folder) / file).is_file():
                shutil.copyfile(Path(folder) / file, aside / "models" / model / file)
        (aside / "app.py").write_text(_APP.format(**words), encoding="utf-8")
        (aside / "README.md").write_text(_README.format(**words), encoding="utf-8")
        (aside / "requirements.txt").write_text(
            "\n".join([*_requirements(), f"gradio=={gradio}", ""]), encoding="utf-8"
        )
        _copy_package(aside, own_version)
    return out


def _requirements() -> list[str]:
    """What camify needs without its extras, as its metadata say."""
    return [line for line in distribution("camify").requires or [] if "extra ==" not in line]


def _copy_package(folder: Path, own_version: str) -> None:
    """The installed camify, with its license and the few metadata that it reads itself."""
    shutil.copytree(_PACKAGE, folder / "camify", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi"))
    metadata = folder / f"camify-{own_version}.dist-info"
    metadata.mkdir()
    lines = ("Metadata-Version: 2.4", "Name: camify", f"Version: {own_version}", "")
    (metadata / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    license_text = distribution("camify").read_text("licenses/LICENSE")
    if license_text is not None:
        (metadata / "LICENSE").write_text(license_text, encoding="utf-8")
