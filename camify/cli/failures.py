"""What ends a command, in one line: what is wrong, where, and what to do. A traceback is for errors of code."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..batch import Batch
from ..console import console, print_error, shown, tolerant_streams
from ..errors import CamifyError, ForeignFormatError

__all__ = ["Failure", "camify_error_in", "explained", "one_line_errors"]

USER, MACHINE = 2, 1
"""Exit codes: of what the user gave, and of what the machine lacks."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(
    {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OPTION_READERS = ("pytorch_lightning", "lightning_fabric", "jsonargparse")
_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n.*\n(?:[\w.]+\.)?(\w+): (.*)", re.DOTALL)
_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|not enough memory|can't allocate memory", re.IGNORECASE)
_KILLED = re.compile(r"DataLoader worker \(pid.*(?:killed by signal|exited unexpectedly)", re.DOTALL)
_DEBUG = "CAMIFY_DEBUG"


class Failure(NamedTuple):
    """Why a command ends, in one line, its exit code, and lines of code that help."""

    message: str
    code: int
    lines: tuple[str, ...] = ()


@contextmanager
def one_line_errors(rank: int = 0) -> Iterator[None]:
    """Within it everything that a user can cause ends the program with one line on stderr and an exit code.

    Of several processes, which torchrun started, one that is not the first says which one it is.

    Lines of code that help stand below it. 2 for what was given, 1 where memory or disk are full, 130 after Ctrl-C.
    Other errors, of camify, of libraries, or of the user's own callbacks and data modules, keep their traceback; so do
    all with ``CAMIFY_DEBUG=1``.
    """
    with tolerant_streams():
        try:
            yield
        except KeyboardInterrupt:
            if rank == 0:
                print_error("camify: stopped.")
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            failure = explained(error)
            if failure is None:
                users = any(_is_users(frame) for frame in _frames(error.__traceback__))
                sys.excepthook = partial(_show_traceback, users=users)  # when the program ends
                raise
            if os.environ.get(_DEBUG, "0") not in ("", "0"):
                _print_traceback(error)
            who = f"process {rank}: " if rank else ""
            print_error(f"camify: error: {who}{failure.message}")
            for line in failure.lines:
                console(stderr=True, soft_wrap=True).print(f"    {line}")
            sys.exit(failure.code)


def explained(error: BaseException) -> Failure | None:
    """What an error means for who gave the command; None where only its traceback can say that."""
    camify_error = camify_error_in(error)
    if camify_error is not None:
        return _of_camify(camify_error)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or _of_memory(cause):
            return Failure(f"Out of memory{_sizes(cause.__traceback__)}. {_LESS}", MACHINE)
    if any(_is_users(frame) for cause in causes for frame in _frames(cause.__traceback__)):
        return None  # the user's own code raised
    if isinstance(error, RuntimeError) and _KILLED.search(str(error)):
        return Failure(f"A loading process was ended from outside, often for lack of memory. {_LESS}", MACHINE)
    if isinstance(error, SafetensorError):
        full = re.search(r"os error 28|No space", str(error))
        return Failure(f"A safetensors file cannot be read or written ({error}).{_free() if full else ''}", MACHINE)
    if isinstance(error, OSError):
        return _of_files(error)
    if isinstance(error, UnicodeEncodeError) and error.encoding.replace("-", "") in ("ascii", "latin1", "iso88591"):
        return Failure(
            f"{error.object}: file names are {error.encoding} here, which cannot say that. Set LC_ALL=C.UTF-8, or"
            " PYTHONUTF8=1.",
            USER,
        )
    if _of_lightning(error) or _of_options(error):
        return Failure(f"{_own_words(error)} (CAMIFY_DEBUG=1 shows where.)", USER)
    return None


def _of_lightning(error: BaseException) -> bool:
    """Whether Lightning says that it was set up wrongly; where nobody has imported it, it says nothing."""
    raised = sys.modules.get("pytorch_lightning.utilities.exceptions")
    return raised is not None and isinstance(error, raised.MisconfigurationException)


_LESS = (
    "Give smaller batches (--data.init_args.batch_size, or --batch_size), smaller images, fewer loading processes, or"
    " for training --trainer.precision bf16-mixed."
)


def camify_error_in(error: BaseException | None) -> CamifyError | None:
    """The camify error that a library wrapped into its own, if there is one."""
    return next((cause for cause in _causes(error) if isinstance(cause, CamifyError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on; where camify itself stumbled over an error, that one explains nothing."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        frames = _frames(error.__traceback__)
        own = bool(frames) and _is_camify(frames[-1])
        error = error.__cause__ if error.__cause__ is not None or own else error.__context__


def _of_camify(error: BaseException) -> Failure:
    if isinstance(error, ForeignFormatError):
        return Failure(error.message, USER, error.lines)
    return Failure(_own_words(error), USER)


def _own_words(error: BaseException) -> str:
    """An error's message; of one that came out of a loading process, without that process's traceback."""
    text = str(error) or type(error).__name__
    match = _WORKER.fullmatch(text.strip())
    return match[2] if match else text


def _of_memory(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return full or (isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None)


def _sizes(trace: TracebackType | None) -> str:
    """The batch that was in hand, as far as the traceback's variables tell it."""
    for frame in _frames(trace):
        for name, value in frame.f_locals.items():
            if isinstance(value, Batch):
                height, width = value.image_size
                return f" with a batch of {len(value)} images of {height} x {width} px"
            if isinstance(value, Tensor) and value.dim() == 4 and name.startswith(("image", "input", "batch", "x")):
                count, _, height, width = value.shape
                return f" with a batch of {count} images of {height} x {width} px"
    return ""


# ---------------------------------------------------------------- files


def _of_files(error: OSError) -> Failure:
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
    place = os.fsdecode(name) if name is not None else None
    if error.errno in _FULL:
        what = f"{place}: cannot be written ({reason})." if place else f"A file cannot be written ({reason})."
        return Failure(f"{what}{_free(place)} Make room, or choose another folder.", MACHINE)
    if place is None:
        return Failure(f"{type(error).__name__}: {reason}", USER if isinstance(error, FileNotFoundError) else MACHINE)
    if isinstance(error, FileNotFoundError):
        return Failure(f"{place}: no such file or folder.", USER)
    return Failure(f"{place}: cannot be read or written ({reason}).{_free(place)}", USER)


def _free(place: str | None = None) -> str:
    """How much room there is where a file should stand, or in the current folder."""
    folder = Path(place or ".").absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        return f" Free space there: {shutil.disk_usage(folder).free / 1e6:,.0f} MB."
    return ""


# ---------------------------------------------------------------- whose code


def _of_options(error: BaseException) -> bool:
    """Whether a library refused a value while it read options: an error in its own lines, not in camify's."""
    if not isinstance(error, ValueError | TypeError | ImportError | NotImplementedError):
        return False
    frames = _frames(error.__traceback__)
    if not frames or _is_camify(frames[-1]):
        return False
    reading = any(frame.f_code.co_name in ("instantiate_classes", "parse_args", "seed_everything") for frame in frames)
    return reading or _package(frames[-1]) in _OPTION_READERS


def _frames(trace: TracebackType | None) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(trace)]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_camify(frame: FrameType) -> bool:
    return _PACKAGE in Path(frame.f_code.co_filename).parents


def _is_users(frame: FrameType) -> bool:
    """Whether a frame is of neither camify, Python, an installed library, nor the program's own file."""
    name = frame.f_code.co_filename
    if name.startswith("<") or _is_camify(frame) or frame.f_globals.get("__name__") == "__main__":
        return False
    return not os.path.realpath(name).startswith(_LIBRARIES)


def _show_traceback(
    kind: type[BaseException],  # noqa: ARG001 - as Python calls it
    error: BaseException,
    trace: TracebackType | None,  # noqa: ARG001
    *,
    users: bool,
) -> None:
    _print_traceback(error)
    if users:
        print_error("camify: the error came out of code that is not camify's; see the traceback above.")
    else:
        print_error(
            "camify: this is an error of camify or of a library. Please report it, with the lines above, the command"
            " and the versions that `camify --version` and `pip list` say."
        )


def _print_traceback(error: BaseException) -> None:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    console(stderr=True, soft_wrap=True).print(shown(text, "\n\t"))
