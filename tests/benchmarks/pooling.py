"""What GAP, GMP and LSE heads look at: ``python tests/benchmarks/pooling.py [--photos FOLDER --network SOURCE]``.

Zhou et al. 2016, section 2, claim that average pooling makes a network find an object's extent, maximum pooling only
its most telling point. The same legacy network with each pooling, fine-tuned alike: accuracy, box accuracy, and of the
region above half of the map's maximum how much of the object it covers, how much of it lies on the object, and how much
of the image it is. Medians of the seeds. ``--pictures FOLDER`` draws the maps of a few images side by side.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from fine_tuning import draw_maps, photographs, quality, shapes, table, tuned

from camify.maps import select, upsample
from camify.metrics.functional import box_masks

POOLS = ("gap", "gmp", "lse")


@torch.no_grad()
def extent(module: Any, loader: Any) -> dict[str, float]:
    """Of the pixels above half of the true class's maximum: share of the object, on the object, of the image."""
    module.model.eval()
    shares: dict[str, list[torch.Tensor]] = {"covered": [], "on object": [], "area": []}
    for batch in loader:
        size = batch["image"].shape[-2:]
        maps = upsample(select(module.model.forward_with_maps(batch["image"])[1], batch["label"]), size)
        peak = maps.amax((1, 2), keepdim=True)
        hot = (maps > peak / 2) & (peak > 0)
        objects = batch["mask"] > 0 if "mask" in batch else box_masks(batch["boxes"], *size)
        both = (hot & objects).sum((1, 2)).double()
        shares["covered"].append(both / objects.sum((1, 2)))
        shares["on object"].append(both / hot.sum((1, 2)).clamp(min=1))
        shares["area"].append(hot.double().mean((1, 2)))
    return {name: float(torch.cat(values).mean()) for name, values in shares.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=480, help="training images, where they are shapes")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--photos", help="folder for ImageFolderDataModule, instead of shapes")
    parser.add_argument("--network", default="torchvision/mobilenet_v2", help="source, for photographs")
    parser.add_argument("--pictures", type=Path)
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    setting = photographs(wanted.photos, wanted.network) if wanted.photos else shapes(wanted.count)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(wanted.seeds):
        data, modules = setting.make_data(seed), {}
        data.setup("fit")
        for pool in POOLS:
            modules[pool], _ = tuned(setting, data, wanted.epochs, seed, pool=pool, lr=wanted.lr)
            found = quality(modules[pool], data.val_dataloader()) | extent(modules[pool], data.val_dataloader())
            rows.setdefault(pool, []).append({key: found[key] for key in found if key not in ("center", "inside")})
            print(seed, pool, {key: round(value, 3) for key, value in rows[pool][-1].items()}, flush=True)
        if seed == 0 and wanted.pictures:
            split = data.val_dataloader().dataset
            chosen = [split[index] for index in range(0, len(split), len(split) // 6)[:6]]
            draw_maps(modules, chosen, data, wanted.pictures / "pooling.png")
    table(rows)
