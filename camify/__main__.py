"""``python -m camify`` is the same as ``camify``."""

from .cli import main

if __name__ == "__main__":
    main()
