"""What a run leaves: the best epoch's weights as a CAM-ready checkpoint, loaded again and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from ...batch import Batch
from ...console import shown
from ...drawing.encoding import encoded
from ...drawing.overlay import ClassMap, overlay_picture, sheet_picture
from ...errors import CheckpointError
from ...eval_mode import eval_mode
from ...files import to_json, write_whole
from ...model import CAMNet
from ...ranks import current
from ..box_calibration import calibrate_boxes
from ..loaders import is_dry_run, single_loader
from ..object_maps import fit_objects
from ..run_folder import run_folder
from .watched_images import pictures_of

__all__ = ["ExportBest", "best_weights", "export_cam_net", "export_legacy"]

_SAME = 1e-5
_COMPARED, _ON_CARD = 8, 4  # images


class ExportBest(pl.Callback):
    """Exports the best epoch's weights when a run ends: ``export/`` in its folder, loaded again and compared.

    The box rule is chosen on the validation split. Of a legacy network that was trained as it is (``head="none"``)
    ``legacy.safetensors`` is written. ``RunRecord`` does this too, with its own figures.

    Attributes:
        exported: what was written: ``folder`` and ``reload_error``, how its object map was fitted and its boxes are
            cut, ``boxes_right``, the share of validation images on which they are right; or ``file``; empty before.
    """

    def __init__(self) -> None:
        self.exported: dict[str, Any] = {}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Export with the figures of the last validation."""
        if not is_dry_run(trainer):
            figures = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith("val/")}
            self.exported = self.export(trainer, pl_module, figures)

    def export(self, trainer: pl.Trainer, module: Any, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write the best weights with these figures; what was written, as ``exported`` has it.

        All processes call it: the first one writes, the others run their part of the images that it needs.
        """
        best, folder = current().first(lambda: best_weights(trainer)), run_folder(trainer)
        weights = None if best is None else best[0]
        if not trainer.is_global_zero:
            if module.cam_net is not None:
                finish_maps(_with_weights(module.cam_net, weights), trainer, module)
            return {}
        if module.cam_net is None:
            file = folder / "legacy.safetensors"
            export_legacy(module.model, weights, file, module.class_names)
            return {"file": str(file)}
        first = Batch.of(next(iter(single_loader(trainer.val_dataloaders))))
        images, sizes = first.images[:_COMPARED].cpu().float(), (first.original_sizes or [])[:_COMPARED]
        told: dict[str, Any] = {}

        def finish(network: CAMNet) -> None:
            finish_maps(network, trainer, module)
            rule = network.box_rule
            told["object_map"] = network.object_map
            told["boxes"] = None if rule is None else str(rule)
            told["boxes_right"] = None if rule is None else rule.accuracy

        error = export_cam_net(
            module.cam_net,
            weights,
            folder / "export",
            results,
            images,
            finish=finish,
            original_sizes=sizes or None,
        )
        return {"folder": str(folder / "export"), "reload_error": error, **told}


def finish_maps(network: CAMNet, trainer: pl.Trainer, module: Any) -> None:
    """Fit the object map of a trained network, all processes together; in the first choose how maps become boxes."""
    if network.pool_name == "gap":
        fit_objects(network, trainer, module)
    if trainer.is_global_zero:
        network.box_rule = calibrate_boxes(network, trainer, module)


def best_weights(trainer: pl.Trainer) -> tuple[dict[str, Tensor], str] | None:
    """The network's weights of the best epoch and their file, or None where no checkpoint was kept."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path or not Path(path).is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}, path


@torch.no_grad()
def export_cam_net(
    network: CAMNet,
    weights: Mapping[str, Tensor] | None,
    folder: Path,
    results: Mapping[str, Any],
    images: Tensor,
    *,
    finish: Callable[[CAMNet], object] = lambda _: None,
    original_sizes: list[tuple[int, int]] | None = None,
) -> float:
    """Save a network with the given weights, load it again and compare the two on ``images``.

    ``finish`` gives it its object map and its box rule; pictures are drawn in the shapes of ``original_sizes`` (height,
    width). Returns the largest difference of logits and maps, relative to
    the largest logit or map value.

    Raises:
        CheckpointError: the loaded network is not the saved one.
    """
    live = _with_weights(network, weights)
    live.results, live.box_rule = dict(results), None
    finish(live)
    live.known_features = None
    live.save_pretrained(folder, overlays=_overlays(live, Batch(images, original_sizes=original_sizes)))
    loaded = CAMNet.from_pretrained(folder)
    with eval_mode(live):
        pairs = zip(live.forward_with_maps(images), loaded.forward_with_maps(images), strict=True)
        error = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in pairs)
    if not error <= _SAME:
        raise CheckpointError(f"{folder}: the loaded network differs from the saved one by {error:.1e}.")
    return error


def _with_weights(network: CAMNet, weights: Mapping[str, Tensor] | None) -> CAMNet:
    live = copy.deepcopy(network).cpu().float()
    if weights is not None:
        live.load_state_dict(weights, strict=True)
    return live


def _overlays(network: CAMNet, batch: Batch) -> bytes | None:
    """Pictures with the map of the predicted class for the model card, PNG; None where they cannot be drawn."""
    if network.preprocessing is None:
        return None
    try:
        images, pictures = batch.images[:_ON_CARD], pictures_of(batch, network)[:_ON_CARD]
        with eval_mode(network):
            logits, maps = network.forward_with_maps(images)
        classes = network.classes
        logits, maps = classes.two_sided(logits), classes.two_sided(maps)
        top, names, shares = classes.predicted(logits), classes.titles(logits.shape[1]), classes.probabilities(logits)
        class_maps = [
            ClassMap(names[k], image_maps[k], float(image_logits[k]), float(share[k]))
            for k, image_maps, image_logits, share in zip(top.tolist(), maps, logits, shares, strict=True)
        ]
        scales = [float(class_map.map_hw.max()) for class_map in class_maps]
        drawn = [
            overlay_picture(picture, None, class_map, scale=scale)
            for picture, class_map, scale in zip(pictures, class_maps, scales, strict=True)
        ]
        return encoded(sheet_picture(drawn, 2), "png")
    except Exception as error:  # noqa: BLE001 - a picture never stops what a run leaves
        rank_zero_warn(shown(f"The model card has no overlays: {type(error).__name__}: {error}."))
        return None


def export_legacy(
    network: nn.Module, weights: Mapping[str, Tensor] | None, path: Path, class_names: list[str] | None
) -> None:
    """Save a legacy network's weights as safetensors that name their classes."""
    state = dict(network.state_dict() if weights is None else weights)
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_whole(
        path, safetensors.torch.save(plain, metadata={"format": "pt", "class_names": to_json(class_names, indent=None)})
    )
