"""The only definitions of figures of maps: pure functions that give a number or a row per image.

Adding them up is done by the classes in ``metrics`` and by ``evaluation``.
A new figure is a function that names its paper, in the file of its kind and in the ``__all__`` of that file.
"""

from typing import Any

from ...console import warn
from ...former_names import current_name
from ...normalizers import NORMALIZERS, Normalizer, normalize_maps
from . import (
    agreement,
    baselines,
    box,
    box_curves,
    calibration,
    classification,
    faithfulness,
    level_sets,
    pixel,
    pointing,
    stability,
)
from .agreement import *  # noqa: F403 - the names of each module's __all__, written once
from .baselines import *  # noqa: F403
from .box import *  # noqa: F403
from .box_curves import *  # noqa: F403
from .calibration import *  # noqa: F403
from .classification import *  # noqa: F403
from .faithfulness import *  # noqa: F403
from .level_sets import *  # noqa: F403
from .pixel import *  # noqa: F403
from .pointing import *  # noqa: F403
from .stability import *  # noqa: F403

__all__ = ["NORMALIZERS", "Normalizer", "normalize_maps"]
__all__ += agreement.__all__
__all__ += baselines.__all__
__all__ += box.__all__
__all__ += box_curves.__all__
__all__ += calibration.__all__
__all__ += classification.__all__
__all__ += faithfulness.__all__
__all__ += level_sets.__all__
__all__ += pixel.__all__
__all__ += pointing.__all__
__all__ += stability.__all__


def __getattr__(name: str) -> Any:
    """Functions by their former, British names."""
    if (current := current_name(name)) == name or current not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn(f"camify.metrics.functional.{name} is called {current} now.", DeprecationWarning, stacklevel=2)
    return globals()[current]
