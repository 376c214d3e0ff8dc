"""The errors of camify: each says what is wrong, where (file, field or layer) and what to do."""

from __future__ import annotations

__all__ = [
    "CamifyError",
    "CheckpointError",
    "ConfigError",
    "ConstantMapWarning",
    "ConversionError",
    "DataError",
    "ForeignFormatError",
    "NotFiniteError",
    "ProcessError",
    "TrainingError",
]


class CamifyError(Exception):
    """Something the user gave cannot be used; the message says what, where and what to do."""


class ConversionError(CamifyError, ValueError):
    """A network cannot be converted, or a conversion did not prove itself."""


class DataError(CamifyError, ValueError):
    """Images, labels or boxes are missing, damaged or contradict each other."""


class NotFiniteError(ConversionError, DataError):
    """A network gives NaN or infinite values: it cannot be converted, nor can images be explained by it."""


class CheckpointError(CamifyError, ValueError):
    """A checkpoint is missing, incomplete, damaged or not what it claims to be."""


class ForeignFormatError(CheckpointError):
    """A file of a format that camify does not read.

    Attributes:
        message: one sentence.
        lines: of code, that make a usable file of it.
    """

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join([message, *(f"    {line}" for line in lines)]))
        self.message, self.lines = message, lines


class ConfigError(CamifyError, ValueError):
    """An option has a value that cannot work."""


class TrainingError(CamifyError, RuntimeError):
    """Training cannot go on; nothing that was reached is lost."""


class ProcessError(CamifyError, RuntimeError):
    """A process that shared the work has ended before its part was done."""


class ConstantMapWarning(UserWarning):
    """A heat map shows nothing: it is zero everywhere."""
