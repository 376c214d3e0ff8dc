"""The terminal: whatever it can show, whoever named what is shown, and also where nobody listens any more.

rich is imported when something is shown: it is half of what `import camify` would take beyond torch.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import category

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "as_text", "console", "fixed", "has_live_display", "plain_text", "print_error", "quiet_console", "shell_quoted",
    "shown", "terminal", "tolerant_streams", "warn", "write_line",
]  # fmt: skip

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories: controls, formats, surrogates, ...
_JOINERS = "\u200c\u200d"  # of Persian, Indic scripts and emoji; they move nothing
_LAYOUT = "\n\t"
_ASCII = str.maketrans({"·": "-", "–": "-", "×": "x", "…": "...", "→": "->", "≥": ">=", "≤": "<="})  # noqa: RUF001 - dashes


def shown(text: object, keep: str = "") -> str:
    r"""Text that says itself: control characters, bidi controls and half surrogates stand as ``\x1b``, ``\u202e``.

    Whatever strangers named (classes, files, fields of a file) goes through this before it is shown anywhere: in a
    terminal, in an error, in Markdown or in HTML. A byte of a file name that is no UTF-8 stands as ``\xff``.

    Args:
        text: anything; its ``str`` is taken.
        keep: control characters that stay as they are, such as line ends.

    Example:
        >>> print(shown("cat \x1b]0;title\x07"))
        cat \x1b]0;title\x07
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_visible(char) else _escaped(char) for char in text)


def _is_visible(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or category(char) not in _HIDDEN


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else char.encode("unicode_escape").decode("ascii")


def fixed(value: float, places: int) -> str:
    """A number with so many decimals; what rounds to nothing has no sign.

    Example:
        >>> fixed(-0.001, 2), fixed(-0.01, 2)
        ('0.00', '-0.01')
    """
    return f"{round(value, places) + 0.0:.{places}f}"


def shell_quoted(text: object) -> str:
    """A word of a command as a shell takes it, also where it holds blanks, quotes or control characters."""
    text = str(text)
    if text.isprintable():
        return shlex.quote(text)
    literal = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{shown(literal)}'"


def plain_text(text: object) -> Text:
    """Text for a cell of a table: no markup, nothing hidden, in any console."""
    from rich.text import Text

    return Text(shown(text))


@cache
def _screen_class() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class Screen(Console):
        """A console whose text is text: markup is off, and nothing in it reaches the terminal as a command."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(shown(text, _LAYOUT), **options)

        def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text = segment.text
                yield segment if segment.control or text == "\n" else Segment(shown(text, _LAYOUT), segment.style)

    return Screen


def console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """The one console of camify, on stdout or stderr as they are when something is printed.

    It shows text as it is, in any encoding; where nobody reads any more (a closed pipe, a full disk) it falls silent.

    Args:
        stderr: instead of stdout.
        soft_wrap: long lines, such as paths and commands, are left to the terminal to wrap, so that they can be copied.
        quiet: show nothing: of several processes the first one speaks.
    """
    stream, quiet = _Stream("stderr" if stderr else "stdout"), quiet or _silent[-1]
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    made: Console = _screen_class()(file=stream, stderr=stderr, soft_wrap=soft_wrap, quiet=quiet, **plain)  # type: ignore[arg-type]
    return made


_silent = [False]  # the last one holds


@contextmanager
def quiet_console(*, silent: bool) -> Iterator[None]:
    """Within it the console shows nothing but errors, where ``silent`` says so."""
    _silent.append(silent or _silent[-1])
    try:
        yield
    finally:
        _silent.pop()


def terminal() -> Console:
    """The terminal as Python found it, which control sequences reach: for pictures, never for anybody's text."""
    from rich.console import Console

    return Console(file=sys.__stdout__)


def has_live_display() -> bool:
    """Whether a bar of rich, such as that of training, stands in the terminal: what is printed appears above it."""
    from rich.file_proxy import FileProxy

    return isinstance(sys.stderr, FileProxy)


def write_line(text: str) -> None:
    """Write a line on stdout as it is, also where the console is silent: what another program reads."""
    stream = _Stream("stdout")
    stream.write(f"{text}\n")
    stream.flush()


def as_text(table: Table) -> str:
    """A table as plain text of at most 110 columns."""
    text = io.StringIO()  # whatever the terminal or the notebook can do: no escape codes
    _screen_class()(
        file=text, width=110, color_system=None, highlight=False, markup=False, emoji=False, force_jupyter=False
    ).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_error(text: str) -> None:
    """Print one line on stderr; the lines of a longer text are put one behind the other."""
    line = " ".join(part for part in (part.strip() for part in str(text).splitlines()) if part)
    _silent.append(False)
    try:
        console(stderr=True, soft_wrap=True).print(line)
    finally:
        _silent.pop()


def warn(message: str, kind: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Warn, with nothing hidden in the message."""
    warnings.warn(shown(message, _LAYOUT), kind, stacklevel=stacklevel + 1)


# ---------------------------------------------------------------- streams


class _Stream:
    r"""stdout or stderr, or one of them as it was: writing to it never raises.

    What its encoding lacks is written as ``\xe9``. After the first failure the stream is led to the null device, so
    that neither a later write nor the end of Python fails.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name, self._own = name, stream

    @property
    def _target(self) -> Any:
        return self._own if self._own is not None else getattr(sys, self._name)

    def write(self, text: str) -> int:
        """Write as much as can be written."""
        target = self._target
        try:
            try:
                target.write(text)
            except UnicodeError:
                encoding = getattr(target, "encoding", None) or "ascii"
                target.write(text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding))
        except BlockingIOError:
            pass  # whoever reads is slow; this text is lost, the next one may get through
        except (OSError, ValueError, AttributeError):  # full, closed, or no stream at all
            _silence(target)
        return len(text)

    def flush(self) -> None:
        """Flush as far as that is possible."""
        target = self._target
        try:
            target.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError, AttributeError):
            _silence(target)

    def isatty(self) -> bool:
        """Whether a person reads."""
        with suppress(OSError, ValueError, AttributeError):
            return bool(self._target.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        if name in ("_name", "_own"):  # of one that is being copied
            raise AttributeError(name)
        return getattr(self._target, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._target)


def _silence(stream: Any) -> None:
    """Lead a stream that cannot be written to nowhere: what waits in its buffer would fail again at the end."""
    with suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within it nothing that is printed, by whomever, can end the program, and warnings hide nothing.

    Progress bars of libraries, users' prints and warnings write to stdout and stderr too.
    """
    before, show = (sys.stdout, sys.stderr), warnings.showwarning
    sys.stdout, sys.stderr = (
        None if stream is None else _Stream(name, stream)
        for name, stream in zip(("stdout", "stderr"), before, strict=True)
    )

    def show_plainly(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        plain = shown(message, _LAYOUT)
        show(message if plain == str(message) else Warning(plain), category, filename, lineno, file, line)

    if show.__module__ == "warnings":  # nobody else, such as a test, collects them
        warnings.showwarning = show_plainly
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        sys.stdout, sys.stderr = before
        if warnings.showwarning is show_plainly:
            warnings.showwarning = show
