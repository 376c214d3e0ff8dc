"""The Hugging Face Hub: a checkpoint folder as a model repository, there and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..console import shell_quoted
from ..errors import CheckpointError, ConfigError
from .folder import CARD, MANIFEST, OVERLAYS, WEIGHTS

__all__ = ["HUB_PREFIX", "fetch_folder", "is_repository", "push_folder", "require_repository_name"]

HUB_PREFIX = "hf:"
_LIBRARIES = ("torchvision", "timm", "camify")  # their names have the form of a repository's, and are none

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILES = [WEIGHTS, MANIFEST, CARD, OVERLAYS]


def is_repository(name: str | Path) -> bool:
    """Whether a string can only name a repository of the hub: ``hf:user/name``, or ``user/name`` that is not here.

    ``user/name`` is none where a folder ``user`` exists, or where ``user`` is a library whose networks camify builds.
    """
    if not isinstance(name, str):
        return False
    if name.startswith(HUB_PREFIX):
        return True
    user = name.partition("/")[0]
    return _REPOSITORY.fullmatch(name) is not None and user not in _LIBRARIES and not Path(user).exists()


def fetch_folder(
    name: str, revision: str | None = None, *, cached: bool = False, files: Sequence[str] = _FILES
) -> Path:
    """The folder of a repository in the hub's cache, fetched where it is not there.

    Args:
        name: ``user/name`` or ``hf:user/name``.
        revision: branch, tag or commit.
        cached: fetch nothing.
        files: names and patterns of those that are fetched; camify's only, where none are given.

    Raises:
        CheckpointError: neither a folder nor a repository of that name can be had.
    """
    repository = name.removeprefix(HUB_PREFIX)
    if not _REPOSITORY.fullmatch(repository):
        raise CheckpointError(f"{name!r}: give the repository as {HUB_PREFIX}USER/NAME.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{name}: does not exist as a folder. To fetch it from the hub: pip install 'camify[hub]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(files), local_files_only=cached
        )
    except Exception as error:  # the client raises its own kinds, those of its HTTP library and OSError
        first = (str(error).strip().splitlines() or [""])[0][:200]
        if cached:
            raise CheckpointError(
                f"{name}: is not in the hub's cache, and nothing is fetched to inspect it. Fetch it first:"
                f" camify check {shell_quoted(name)}"
            ) from error
        raise CheckpointError(
            f"{name}: is no folder here, and cannot be had from the hub ({type(error).__name__}: {first})."
        ) from error
    return Path(folder)


def push_folder(folder: str | Path, name: str, *, private: bool = False, space: bool = False) -> str:
    """Upload a checkpoint folder as the model repository ``user/name``, or a folder as the Space of that name.

    Returns its address. A checkpoint folder must be whole (see ``camify check``); of a Space all files are uploaded.
    Logging in is the hub's: ``hf auth login`` or HF_TOKEN.

    Args:
        folder: of a checkpoint, or of a Space (``camify.app.space.write_space``).
        name: ``user/name``.
        private: only who is allowed to can see it.
        space: it is a Space, which Gradio runs.

    Raises:
        ConfigError: the name is none, or the extra ``hub`` is not installed.
        CheckpointError: the hub refuses.
    """
    require_repository_name(name)
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("The hub needs huggingface_hub. Install it: pip install 'camify[hub]'") from error
    kind, sdk = ("space", "gradio") if space else (None, None)
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        done = hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=None if space else _FILES,
            commit_message="Page of a CAM-ready network" if space else "CAM-ready checkpoint",
            repo_type=kind,
        )
    except Exception as error:  # the client raises its own kinds, those of its HTTP library and OSError
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(f"{name}: the hub did not take {folder} ({type(error).__name__}: {first}).") from error
    return str(done.repo_url)


def require_repository_name(name: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        ConfigError: it is not of the form ``user/name``.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"{name!r}: give the repository as USER/NAME.")
