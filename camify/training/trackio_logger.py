"""TrackioLogger: metrics and pictures of a run to Trackio, on this machine or in a Space of the Hugging Face Hub."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_only

from ..errors import ConfigError

__all__ = ["TrackioLogger"]

_LARGEST = 300  # letters of a hyperparameter


class TrackioLogger(Logger):
    """A Lightning logger for Trackio, which has none of its own; needs ``pip install trackio``.

    ``trackio show --project NAME`` opens the curves and pictures. Nothing leaves this machine without ``space_id``.

    Args:
        project: that the run belongs to.
        name: of the run; None lets Trackio choose one. A run of that name goes on.
        space_id: ``USER/NAME`` of a Space that shows them too.
        group: of runs that belong together.

    Raises:
        ConfigError: Trackio is not installed.

    Example:
        ``pl.Trainer(logger=[TrackioLogger("flowers", name="vgg16-gap")])``; in a configuration ``trainer.logger``.
    """

    def __init__(
        self, project: str = "camify", name: str | None = None, space_id: str | None = None, group: str | None = None
    ) -> None:
        super().__init__()
        try:
            import trackio
        except ImportError as error:
            raise ConfigError("TrackioLogger: needs Trackio. Install it: pip install trackio") from error
        self._trackio: Any = trackio
        self._project, self._name = project, name
        self._options = {"space_id": space_id, "group": group}
        self._params: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run, once it has begun."""
        return self._name if self._run is None else str(self._run.name)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, begun when it is asked for."""
        if self._run is None:
            self._run = self._trackio.init(
                project=self._project, name=self._name, config=self._params, resume="allow", embed=False,
                auto_log_gpu=False, auto_log_cpu=False, **self._options,
            )  # fmt: skip
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Keep plain values; of others their text."""
        given = vars(params) if isinstance(params, Namespace) else dict(params)
        plain = (bool, int, float, str, type(None))
        self._params |= {
            str(key): value if isinstance(value, plain) else str(value)[:_LARGEST] for key, value in given.items()
        }
        if self._run is not None:
            self._run.config.update(self._params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures at a global step."""
        self.experiment.log({key: float(value) for key, value in metrics.items()}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log PIL pictures at a global step; several get numbers."""
        for number, image in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{number}"
            self.experiment.log({name: self._trackio.Image(image)}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Send what waits, and end the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
