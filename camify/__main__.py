"""``python -m camify`` is the same as ``camify``."""

from .cli.main import main

if __name__ == "__main__":
    main()
