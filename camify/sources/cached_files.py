"""Files that libraries keep in their caches: checked each time like fresh ones, as anybody may have written there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch

from ..checkpoint.folder import file_sha256
from ..errors import CheckpointError

__all__ = ["published_digest", "require_hub_file", "require_hub_files", "require_published", "torch_cache_file"]

_SHA1, _SHA256 = 40, 64  # digits


def torch_cache_file(url: str) -> Path:
    """Where ``torch.hub`` keeps what it fetched from a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def published_digest(name: str) -> str | None:
    """The beginning of the SHA-256 in a file's name, as in ``resnet18-f37072fd.pth``; None where it has none."""
    digest = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors)$", name)
    return None if digest is None else digest[1]


def require_published(url: str) -> None:
    """Check that a file in torch's cache, where there is one, has the content that its name says.

    Raises:
        CheckpointError: it has another one, or is no file; names it.
    """
    file = torch_cache_file(url)
    if not file.exists():
        return
    digest = published_digest(file.name)
    if not file.is_file():
        problem = "is no file"
    elif not file.stat().st_size:
        problem = "is empty"
    elif digest is not None and not file_sha256(file).startswith(digest):
        problem = "is not what was published under that name: its SHA-256 does not begin as the name ends"
    else:
        return
    raise CheckpointError(f"{file}: {problem}. Delete it; it is fetched again then.")


def require_hub_files(repository: str, names: tuple[str, ...]) -> None:
    """Check files of a repository in the Hugging Face Hub's cache, where they are there.

    The cache links each file to one that is named by its hash: SHA-256 of large files, git's SHA-1 of small ones.

    Raises:
        CheckpointError: a file has another hash; names it.
    """
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    for wanted in names:
        cached = try_to_load_from_cache(name, wanted, revision=revision or None)
        if isinstance(cached, str):
            require_hub_file(Path(cached))


def require_hub_file(cached: Path) -> None:
    """As ``require_hub_files``, for a file of the cache by its path."""
    file = cached.resolve()
    digest = file.name
    if not file.is_file():
        raise CheckpointError(f"{cached}: is no file. Delete it; it is fetched again then.")
    if re.fullmatch(rf"[0-9a-f]{{{_SHA256}}}", digest):
        actual = file_sha256(file)
    elif re.fullmatch(rf"[0-9a-f]{{{_SHA1}}}", digest):
        content = file.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:  # a file system without links: the cache knows no hash
        return
    if actual != digest:
        raise CheckpointError(f"{cached}: was changed since it was fetched (hash {actual[:8]}...). Delete {file}.")
