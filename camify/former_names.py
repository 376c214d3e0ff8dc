"""Names that earlier versions wrote, and what they are called now; files of every version are read."""

from __future__ import annotations

from typing import Any

__all__ = ["current_name", "with_current_keys"]

_WHOLE = {"licence": "license", "finds": "highlights"}


def current_name(name: str) -> str:
    """A key or name as it is spelled now.

    Examples:
        >>> current_name("val/centre_box_acc")
        'val/center_box_acc'
    """
    return _WHOLE.get(name, name.replace("centre", "center"))


def with_current_keys(value: Any) -> Any:
    """Plain values (dicts, lists, numbers, strings) whose dicts have keys as they are spelled now."""
    if isinstance(value, dict):
        return {
            current_name(key) if isinstance(key, str) else key: with_current_keys(item) for key, item in value.items()
        }
    return [with_current_keys(item) for item in value] if isinstance(value, list) else value
