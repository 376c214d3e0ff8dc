"""Options that are counts: whole numbers that are not too small."""

from __future__ import annotations

from ..errors import ConfigError

__all__ = ["require_counts"]


def require_counts(*, least: int, **counts: object) -> None:
    """Refuse what is no whole number, or too small.

    Raises:
        ConfigError: names every option that is.
    """
    wrong = [
        f"{name}={value!r}"
        for name, value in counts.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < least
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: must be {'whole numbers' if wrong[1:] else 'a whole number'} of at least {least}."
        )
