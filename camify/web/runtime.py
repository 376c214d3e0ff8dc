"""The files of onnxruntime-web that a page needs: from a folder of npm's, or from a public server by their hashes."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

__all__ = ["CDN", "RUNTIME_VERSION", "Runtime", "RuntimeFile", "integrity_of", "published_runtime", "runtime_of"]

RUNTIME_VERSION = "1.30.0"
"""Of onnxruntime-web: the one that pages load unless they have their own, and that the tests run."""
CDN = "https://cdn.jsdelivr.net"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


@dataclass(frozen=True)
class RuntimeFile:
    """One file: its name, how large it is, and the hash that the browser compares."""

    name: str
    bytes: int
    integrity: str


_PUBLISHED = (
    RuntimeFile(SCRIPT, 73_054, "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    RuntimeFile(WASM, 14_239_897, "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
)


@dataclass(frozen=True)
class Runtime:
    """What runs the network in a browser.

    Attributes:
        version: of onnxruntime-web.
        files: the script, then the WebAssembly file.
        folder: where they lie on this machine, to be copied; None: browsers load them from ``address``.
        address: before the files' names, as the page has it.
    """

    version: str
    files: tuple[RuntimeFile, ...]
    folder: Path | None
    address: str


def integrity_of(content: bytes) -> str:
    """The hash of a file as browsers compare it.

    Example:
        >>> integrity_of(b"")
        'sha384-OLBgp1GsljhM2TJ+sbHjaiH9txEUvgdDTAzHv2P24donTt6/529l+9Ua0vFImLlb'
    """
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode('ascii')}"


def published_runtime() -> Runtime:
    """The files that a public server has: a browser loads them there, and takes nothing but just these bytes."""
    return Runtime(RUNTIME_VERSION, _PUBLISHED, None, f"{CDN}/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/")


def runtime_of(folder: str | Path) -> Runtime:
    """The files of a folder of npm's package onnxruntime-web, or of its ``dist``.

    Raises:
        ConfigError: a file is missing, or is not what its name says.
    """
    place = Path(folder)
    place = place / "dist" if (place / "dist").is_dir() else place
    missing = [name for name in (SCRIPT, WASM) if not (place / name).is_file()]
    if missing:
        raise ConfigError(
            f"--runtime {folder}: has no {' and no '.join(missing)}. Give the folder of npm's package onnxruntime-web:"
            " npm install onnxruntime-web, then node_modules/onnxruntime-web."
        )
    contents = {name: (place / name).read_bytes() for name in (SCRIPT, WASM)}
    version = re.search(rb"ONNX Runtime Web v(\d[\w.-]*)", contents[SCRIPT][:4096])
    if version is None or not contents[WASM].startswith(b"\0asm"):
        wrong = SCRIPT if version is None else WASM
        raise ConfigError(f"--runtime {place / wrong}: is no file of onnxruntime-web. Install the package again.")
    files = tuple(RuntimeFile(name, len(content), integrity_of(content)) for name, content in contents.items())
    known = version[1].decode() == RUNTIME_VERSION
    damaged = next((own.name for own, right in zip(files, _PUBLISHED, strict=True) if known and own != right), None)
    if damaged is not None:
        raise ConfigError(
            f"--runtime {place / damaged}: is not the file of version {RUNTIME_VERSION}. Install the package again."
        )
    return Runtime(version[1].decode(), files, place, "runtime/")
