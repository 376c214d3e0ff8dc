"""The features of frozen epochs, computed once: head epochs then cost little more than the head."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..batch import Batch
from ..errors import ConfigError
from ..eval_mode import eval_mode
from ..files import temporary_folder
from ..logits import logits_of
from ..model import CAMNet
from ..ranks import ONE, Ranks, current
from .labels import has_random_access
from .loaders import single_loader
from .run_folder import run_folder

__all__ = ["FeatureCache", "FrozenPart", "changes_by_chance", "run_new_layers"]

_SHARED = Path("/dev/shm")  # noqa: S108 - the name is drawn; memory of a machine that its processes can share, on Linux
_CHUNK = 32  # images of a batch of `batches`
_PROBED = 16  # training samples that are read twice to see whether chance is in them


class FrozenPart(nn.Module):
    """The features of a CAMNet up to its new layers: what stays the same while they are frozen."""

    def __init__(self, network: CAMNet) -> None:
        super().__init__()
        self.features = network.features
        self.first = network.head_layers[0] if network.head_layers else None
        self._input: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """What the first new layer is given, else the last spatial map."""
        if self.first is None:
            features_NCHW: Tensor = self.features(images)
            return features_NCHW
        layer = self.features.get_submodule(self.first)
        handle = layer.register_forward_pre_hook(self._stop)
        try:
            self.features._call_impl(images)  # type: ignore[no-untyped-call] # where it was compiled, not that: it stops half-way
        except _FeaturesReached:
            pass
        finally:
            handle.remove()
        kept, self._input = self._input, None
        if kept is None:
            raise ConfigError(f"feature_cache: the new layer {self.first!r} was not run. Leave feature_cache out.")
        return kept

    def _stop(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002 - torch's signature
        self._input = inputs[0]
        raise _FeaturesReached


class _FeaturesReached(Exception):  # noqa: N818 - no error: the rest of the network is not needed
    pass


def run_new_layers(network: CAMNet, features_NCHW: Tensor) -> Tensor:
    """The last spatial map from what ``FrozenPart`` gave."""
    for name in network.head_layers:
        features_NCHW = network.features.get_submodule(name)(features_NCHW)
    return features_NCHW


def _check_chain(network: CAMNet) -> None:
    names, features = network.head_layers, network.features
    steps = (
        [str(node.target) for node in features.graph.nodes if node.op == "call_module"]
        if isinstance(features, fx.GraphModule)
        else [name for name, _ in features.named_children()]
    )
    if names and tuple(steps[-len(names) :]) != tuple(names):
        raise ConfigError("feature_cache: the new layers are not the last of the features. Leave feature_cache out.")


class FeatureCache(Dataset[dict[str, Any]]):
    """The frozen features of every training sample, with its label and all else that is known of it.

    Args:
        network: its features are frozen.
        loader: the training loader; order and batches of the cached one are its own.
        where: ``"memory"`` or ``"disk"``: a file in ``folder`` that goes with this object.
        limit_gb: the most that features may take, 10^9 bytes.
        views: draws of the augmentation that are kept of every image; epoch e has number e modulo ``views``. None: one,
            and a ConfigError where the samples are not the same each time.
        mirrored: instead, every image and its mirror image are kept, and each epoch draws one of the two.
        teacher: gives logits of the same images.
        guided: the loss looks at where objects are: batches of training hold masks, or boxes where there are none.
            Those of ``batches`` hold both in any case.
        folder: of the run.
        device: where features are computed.
        ranks: the processes of the run. Those of one machine compute their part each and keep all features together, in
            one mapped file: in shared memory, or in ``folder``.
        per_machine: how many of them a machine has.

    Raises:
        ConfigError: features would take more than the limit, chance is in the samples, or new layers are not the last.
    """

    def __init__(
        self,
        network: CAMNet,
        loader: DataLoader[Any],
        *,
        where: str,
        limit_gb: float,
        views: int | None,
        mirrored: bool = False,
        teacher: nn.Module | None,
        guided: bool = False,
        folder: Path,
        device: torch.device,
        ranks: Ranks = ONE,
        per_machine: int = 1,
    ) -> None:
        _check_chain(network)
        self._ranks, self._per_machine, self._place = ranks, per_machine, ranks.rank % per_machine
        self._parent = folder
        self.loader, self.view, self._guided = loader, 0, guided
        self.views, self.mirrored = 2 if mirrored else views or 1, mirrored
        self._turned: Tensor | None = None
        with isolate_rng():
            if views is None:
                _refuse_chance(loader)
            self._features: list[Tensor] = []
            self._rest: list[dict[str, Any]] = []
            self._on_disk = ExitStack()
            self._folder = (
                self._on_disk.enter_context(temporary_folder(folder / "features")) if where == "disk" else None
            )
            part = FrozenPart(network)
            for view in range(self.views):
                torch.manual_seed(view + self.views * self._place)
                self._add_view(part, teacher, limit_gb, device, mirror=mirrored and view == 1)

    @torch.no_grad()
    def _add_view(
        self, part: FrozenPart, teacher: nn.Module | None, limit_gb: float, device: torch.device, *, mirror: bool
    ) -> None:
        data: Any = self.loader.dataset
        count = len(data)
        own = slice(self._place, count, self._per_machine)
        if 0 < count < self._per_machine:
            raise ConfigError(f"feature_cache: {count} training images are fewer than the processes of a machine.")
        reader: DataLoader[Any] = DataLoader(
            data if self._per_machine == 1 else Subset(data, range(count)[own]),
            batch_size=self.loader.batch_size or 32,
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
        )
        store: Tensor | None = None
        kept: Tensor | None = None
        rest: dict[str, list[Any]] = {}
        start = 0
        with eval_mode(part), eval_mode(teacher or part):
            for batch in reader:
                known = _mirrored(Batch.of(batch)) if mirror else Batch.of(batch)
                images, sample = known.images.to(device), _beside(known)
                features_NCHW = part(images.to(next(part.parameters()))).float().cpu()
                if store is None or kept is None:
                    store = self._empty((count, *features_NCHW.shape[1:]), limit_gb)
                    kept = store[own]
                kept[start : start + len(features_NCHW)] = features_NCHW
                start += len(features_NCHW)
                if teacher is not None:
                    taught = logits_of(teacher, images.to(next(teacher.parameters())), finite=False)
                    sample["teacher"] = taught.float().cpu()
                sample["size"] = torch.tensor(images.shape[-2:]).expand(len(images), 2)
                for key, value in sample.items():
                    rest.setdefault(key, []).append(value)
        if store is None:
            raise ConfigError("feature_cache: there are no training samples.")
        self._features.append(store)
        self._rest.append(self._of_machine({key: _join(parts) for key, parts in rest.items()}, count))

    def _of_machine(self, own: dict[str, Any], count: int) -> dict[str, Any]:
        """What is known of all samples; and all features are there when all processes have been here."""
        ranks = self._ranks
        if ranks.world_size == 1:
            return own
        parts = ranks.everywhere(ranks.gather(own if ranks.rank < self._per_machine else None)[: self._per_machine])
        whole: dict[str, Any] = {}
        for place, part in enumerate(one for one in parts if one is not None):
            for key, values in part.items():
                if key not in whole:
                    is_tensor = isinstance(values, Tensor)
                    whole[key] = values.new_empty(count, *values.shape[1:]) if is_tensor else [None] * count
                whole[key][place :: self._per_machine] = values
        return whole

    def _empty(self, shape: tuple[int, ...], limit_gb: float) -> Tensor:
        need = 4 * math.prod(shape) * self.views / 1e9
        if need > limit_gb:
            raise ConfigError(
                f"feature_cache: features of {shape[0]} samples in {self.views} views take {need:.2f} GB, more than"
                f" feature_cache_gb={limit_gb:g}. Raise it, use feature_cache=disk, or fewer cached_views."
            )
        if self._ranks.world_size > 1:
            return self._shared(shape)
        if self._folder is None:
            return torch.empty(shape, dtype=torch.float32)
        path = self._folder / f"{len(self._features)}.npy"
        _reserve(path, 4 * math.prod(shape))
        return torch.from_numpy(np.memmap(path, mode="r+", dtype=np.float32, shape=shape))

    def _shared(self, shape: tuple[int, ...]) -> Tensor:
        """A mapped file of all processes of this machine, which goes when the last of them has gone."""
        ranks, size = self._ranks, 4 * math.prod(shape)
        path: Path | None = None
        with ranks.agree():
            if self._place == 0:
                parent = self._folder or self._parent
                if self._folder is None and _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > 1.1 * size:
                    parent = _SHARED
                path = parent / f"camify-features-{secrets.token_hex(8)}"
                _reserve(path, size)
        paths: list[Any] = ranks.everywhere(ranks.gather(path))
        with ranks.agree():
            own = paths[ranks.rank - self._place]  # that of the first process of this machine
            store = torch.from_numpy(np.memmap(own, mode="r+", dtype=np.float32, shape=shape))
        if path is not None:
            path.unlink()  # all have it open
        return store

    def __len__(self) -> int:
        return len(self._features[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of training: ``features`` (N, C, h, w) instead of ``image``, ``size`` (N, 2) of the images."""
        known = self._rest[self.view]
        objects = ["mask" if "mask" in known else "boxes"] if self._guided else []
        batch = self._read(indices, [name for name in ("label", "teacher", "size", "path", *objects) if name in known])
        if "path" in batch:  # Lightning goes through lists item by item, three times a step
            batch["path"] = np.array(batch["path"], dtype=object)
        return batch

    def _read(self, indices: Sequence[int], names: Iterable[str]) -> dict[str, Any]:
        """The features of some images, with what is known of them by these names."""
        chosen, rest = torch.as_tensor(indices), self._rest[self.view]
        batch = {
            name: values[chosen] if isinstance(values, Tensor) else [values[i] for i in indices]
            for name, values in ((name, rest[name]) for name in names)
        }
        batch["features"] = self._features[self.view][chosen]
        if self._turned is None:
            return batch
        for place in self._turned[chosen].nonzero().flatten().tolist():  # of these the mirror image's
            for name in names:
                batch[name][place] = self._rest[1][name][indices[place]]
            batch["features"][place] = self._features[1][indices[place]]
        return batch

    def batches(self, network: CAMNet, ranks: Ranks = ONE) -> Iterator[dict[str, Any]]:
        """All images once, as they are, in order: ``features`` are the last spatial map (N, C, h, w).

        Of several processes each gets its part, every so many-th image.
        """
        self._turned, before, view = None, self._turned, self.view
        self.view = 0
        try:
            numbers = range(ranks.rank, len(self), ranks.world_size)
            for start in range(0, len(numbers), _CHUNK):
                batch = self._read(numbers[start : start + _CHUNK], self._rest[0])
                like = next(network.parameters())
                with torch.no_grad(), eval_mode(network):
                    batch["features"] = run_new_layers(network, batch["features"].to(like))
                yield batch
        finally:
            self._turned, self.view = before, view

    def serve(self, trainer: pl.Trainer, epoch: int) -> None:
        """Let the trainer read the cache instead of the images."""
        if self.mirrored:
            self._turned = torch.rand(len(self), generator=torch.Generator().manual_seed(epoch)) < 0.5
        else:
            self.view = epoch % self.views
        _put_loader(trainer, DataLoader(self, batch_sampler=self.loader.batch_sampler, collate_fn=_as_it_is))

    def give_back(self, trainer: pl.Trainer) -> None:
        """Let the trainer read images again."""
        _put_loader(trainer, self.loader)

    def close(self) -> None:
        """Forget the features; what lay on disk is removed."""
        self._features.clear()
        self._on_disk.close()

    @classmethod
    def of(cls, module: Any, trainer: pl.Trainer) -> FeatureCache:
        """The cache that a fine-tuner's options ask for."""
        loader, options = single_loader(trainer.train_dataloader), module.options.cache
        if not isinstance(loader, DataLoader) or not has_random_access(loader):
            raise ConfigError(
                "feature_cache needs a DataLoader over a data set of known length. Leave feature_cache out."
            )
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        data: Any = getattr(trainer, "datamodule", None)
        mirrored = module.plan is not None and module.plan.mirrored
        with data.without_augmentation() if mirrored and hasattr(data, "without_augmentation") else nullcontext():
            return cls(
                module.model,
                loader,
                where=options.feature_cache,
                limit_gb=options.feature_cache_gb,
                views=options.cached_views,
                mirrored=mirrored,
                teacher=module.teacher,
                guided=bool(module.objective.energy),
                folder=folder,
                device=module.device,
                ranks=current(),
                per_machine=trainer.num_devices if trainer.world_size > 1 else 1,
            )


def _reserve(path: Path, size: int) -> None:
    """A file whose bytes are there: writing into a mapped file on a full disk would end the process without a word."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        raise ConfigError(
            f"feature_cache: {size / 1e9:.2f} GB cannot be written to {path.parent} ({error.strerror or error}); free:"
            f" {free:.2f} GB. Make room, use feature_cache=memory, or leave it out."
        ) from error


def _put_loader(trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
    """Lightning has no public way to change the loader between epochs but to build it anew every time."""
    trainer.fit_loop._combined_loader.flattened = [loader]  # type: ignore[union-attr]


def _as_it_is(batch: Any) -> Any:
    return batch


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


def _mirrored(batch: Batch) -> Batch:
    """A batch of the mirror images, with their boxes and masks."""
    width = batch.images.shape[-1]
    boxes = None
    if batch.boxes is not None:
        boxes = [torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], 1) for b in batch.boxes]
    masks = None if batch.masks is None else batch.masks.flip(-1)
    return replace(batch, images=batch.images.flip(-1), boxes=boxes, masks=masks)


def _beside(batch: Batch) -> dict[str, Any]:
    """What a batch holds besides its images, under the names of camify's data sets."""
    known = {"label": batch.labels, "boxes": batch.boxes, "mask": batch.masks, "path": batch.paths}
    return {name: value for name, value in known.items() if value is not None}


def _refuse_chance(loader: DataLoader[Any]) -> None:
    if changes_by_chance(loader):
        raise ConfigError(
            "feature_cache: training images change from one reading to the next (augmentation). Give cached_views=V"
            " to keep V draws of each, or --data.init_args.augment none."
        )


def changes_by_chance(loader: DataLoader[Any]) -> bool:
    """Whether some of the first samples are others when they are read again."""
    dataset: Any = loader.dataset
    for index in range(min(_PROBED, len(dataset))):
        twice = []
        for seed in (0, 1):
            torch.default_generator.manual_seed(seed)
            sample = dataset[index]
            twice.append(Batch.of(loader.collate_fn([sample])).images)
        if not torch.equal(*twice):
            return True
    return False
