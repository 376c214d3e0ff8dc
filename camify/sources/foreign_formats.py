"""Files that hold a network in a form that camify does not read: what each is, and the lines that make a usable file.

They are known by what is in them, where that tells, and by the end of their name. None of them is loaded.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from ..errors import ForeignFormatError

__all__ = ["foreign_error"]

_HEAD = 64  # bytes that tell what a file is
_PROGRAMS = re.compile(r"GLOBAL (posix|nt|os|sys|subprocess|builtins|__builtin__|shutil|socket|runpy|importlib|pty)\.")
"""What no network needs: of a file that calls these, nobody is told how to read it."""
_TO_CONVERT = "camify convert torchvision/NAME@weights.pth OUT"
_FROM_ONNX = "camify convert model.onnx OUT"
_STATE_DICT = 'torch.save(model.state_dict(), "weights.pth")'


class _Format(NamedTuple):
    """A format and how its networks come to camify, in at most three lines; FILE stands for its path."""

    name: str
    suffixes: tuple[str, ...]
    lines: tuple[str, ...]
    begins: tuple[tuple[int, bytes], ...] = ()
    """What stands where in such a file."""
    pickled: bool = False


_TORCHSCRIPT = _Format(
    "a TorchScript program",
    (".torchscript", ".ptl"),
    ('model = torch.jit.load("FILE")  # only if you trust it', _STATE_DICT, _TO_CONVERT),
)
_ULTRALYTICS = _Format(
    "a pickled network of Ultralytics",
    (),
    ("from ultralytics import YOLO", 'YOLO("FILE").export(format="onnx")  # only if you trust it', _FROM_ONNX),
    pickled=True,
)
_PICKLED = _Format(
    "a file with pickled objects",
    (),
    (
        'saved = torch.load("FILE", weights_only=False)  # runs its code: only if you trust it',
        'torch.save(saved.state_dict(), "weights.pth")  # of a dict: saved["state_dict"]',
        _TO_CONVERT,
    ),
    pickled=True,
)
_HDF5 = _Format(
    "an HDF5 file, as Keras writes it, under another name",
    (),
    ("cp FILE model.h5", "camify convert model.h5 OUT"),
    ((0, b"\x89HDF\r\n\x1a\n"),),
)
_FORMATS = (
    _HDF5,
    _Format(
        "a TensorFlow Lite network",
        (".tflite", ".lite"),
        ("pip install tf2onnx", "python -m tf2onnx.convert --tflite FILE --output model.onnx", _FROM_ONNX),
        ((4, b"TFL3"),),
    ),
    _Format(
        "a frozen TensorFlow graph",
        (".pb", ".pbtxt"),
        (
            "pip install tf2onnx",
            "python -m tf2onnx.convert --graphdef FILE --inputs IN:0 --outputs OUT:0 --output model.onnx",
            _FROM_ONNX,
        ),
    ),
    _Format(
        "a network of Caffe",
        (".caffemodel", ".prototxt"),
        ("# export it to ONNX, with caffe2onnx for instance", _FROM_ONNX),
    ),
    _Format(
        "a Core ML network",
        (".mlmodel", ".mlpackage"),
        ("# export the network that it was made from to ONNX", _FROM_ONNX),
    ),
    _Format(
        "a TensorRT engine, made for one kind of GPU",
        (".engine", ".plan", ".trt"),
        ("# give the ONNX file that it was built from", _FROM_ONNX),
        ((0, b"ftrt"),),
    ),
    _Format(
        "a network of ncnn",
        (".param",),
        ("# give the file that it was converted from, ONNX or PyTorch", _FROM_ONNX),
        ((0, b"7767517\n"),),
    ),
    _Format(
        "a network of PaddlePaddle",
        (".pdmodel", ".pdiparams", ".pdparams"),
        (
            "pip install paddle2onnx",
            "paddle2onnx --model_dir FOLDER --model_filename FILE --save_file model.onnx",
            _FROM_ONNX,
        ),
    ),
    _Format(
        "a file of Darknet weights",
        (".weights",),
        ("# give an ONNX export of the network, or its PyTorch weights", _FROM_ONNX),
    ),
    _Format(
        "an OpenVINO network",
        (".xml",),
        ("# give the file that it was converted from, ONNX or PyTorch", _FROM_ONNX),
    ),
    _Format(
        "a file of MXNet weights",
        (".params",),
        ("# export the network to ONNX: mxnet.onnx.export_model(...)", _FROM_ONNX),
    ),
    _Format(
        "a GGUF file, the weights of a language model",
        (".gguf",),
        ("# camify reads image classifiers",),
        ((0, b"GGUF"),),
    ),
    _Format(
        "an archive of NumPy arrays",
        (".npz", ".npy"),
        ("# name the arrays as the network's tensors are named", 'torch.save(tensors, "weights.pth")', _TO_CONVERT),
    ),
    _Format(
        "a file of Flax weights",
        (".msgpack",),
        ("# load them into the PyTorch network, then:", _STATE_DICT, _TO_CONVERT),
    ),
    _Format(
        "a pickle",
        (".pkl", ".pickle", ".dill"),
        ('model = pickle.load(open("FILE", "rb"))  # runs its code: only if you trust it', _STATE_DICT, _TO_CONVERT),
        pickled=True,
    ),
    _Format(
        "a pickle of joblib",
        (".joblib",),
        ('model = joblib.load("FILE")  # runs its code: only if you trust it', _STATE_DICT, _TO_CONVERT),
        pickled=True,
    ),
    _TORCHSCRIPT,
)
_SAVED_MODEL = _Format(
    "a TensorFlow SavedModel",
    (),
    ("pip install tf2onnx", "python -m tf2onnx.convert --saved-model FILE --output model.onnx", _FROM_ONNX),
)


def foreign_error(path: Path, reason: str = "") -> ForeignFormatError | None:
    """The refusal of a file or folder of a format that camify does not read, with the lines that help; None of others.

    Args:
        path: the file or folder; None is given where there is none.
        reason: what torch said when it could not read it, where it was asked.

    Example:
        >>> foreign_error(Path("no_such_file.tflite")) is None
        True
    """
    kind = _format_of(path, reason) if path.exists() else None
    if kind is None:
        return None
    wanted = re.search(r"GLOBAL ([\w.]{1,200})", reason)
    needs = f" (it needs {wanted[1].rstrip('.')})" if wanted else ""
    name = f"{kind.name}{needs}{', and reading such objects can run code' * kind.pickled}"
    lines = tuple(line.replace("FILE", str(path)) for line in kind.lines)
    return ForeignFormatError(f"{path}: is {name}. camify does not read it; a usable file is made so:", lines)


def _format_of(path: Path, reason: str) -> _Format | None:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return _SAVED_MODEL
        return next((kind for kind in _FORMATS if path.suffix in kind.suffixes), None)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    known = next((kind for kind in _FORMATS if any(head[at:].startswith(magic) for at, magic in kind.begins)), None)
    if known is not None:
        return known
    if "TorchScript" in reason or _is_torchscript(path):
        return _TORCHSCRIPT
    if "GLOBAL ultralytics." in reason:
        return _ULTRALYTICS
    if _PROGRAMS.search(reason):
        return None
    if "GLOBAL " in reason:
        return _PICKLED
    if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return next(kind for kind in _FORMATS if ".xml" in kind.suffixes)
    return next((kind for kind in _FORMATS if path.suffix.lower() in kind.suffixes), None)


def _is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds code, as TorchScript's do."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
