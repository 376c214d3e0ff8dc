"""CAMNet: features -> pooling -> linear, so that the class activation maps are an output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .box_features import box_features
from .boxes import DEFAULT_RULE, BoxRule
from .checkpoint.certificate import Certificate
from .checkpoint.folder import MANIFEST, open_folder, write_folder
from .checkpoint.hub import fetch_folder, is_repository
from .checkpoint.manifest import compare_written, finite_values, manifest_of, network_of
from .checkpoint.model_card import model_card
from .errors import ConversionError
from .eval_mode import eval_mode, full_precision, without_hooks
from .maps import class_maps, identity_error, map_weight
from .pooling import POOLS
from .preprocessing import Preprocessing
from .task import Classes, Task

__all__ = ["CAMNet"]


class CAMNet(nn.Module):
    """A classifier whose logits are explained by its maps: ``mean(map_k) + bias_k == logit_k`` (with GAP).

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", section 2.

    Args:
        features: image (N, 3, H, W) -> last spatial map (N, C, h, w).
        classifier: linear layer, C -> K.
        pool: ``"gap"``, ``"gmp"``, ``"lse"`` or ``"tap"``; only GAP has the identity.
        dropout: between pooling and classifier, while training.
        head_layers: names of the layers inside ``features`` that belong to the new head.

    Attributes:
        certificate: the record of the conversion that made this network, or None.
        class_names: names of the K classes in order, or None.
        task: what the logits mean, see ``Task``; of one logit ``binary``, else ``multiclass`` until it is set.
        preprocessing: how an image becomes the input, a ``Preprocessing`` (a dict of its fields is taken too), or None.
        untrained: names of the parts whose weights were drawn and never trained; training and fitting empty it.
        results: figures measured with these weights, JSON values; ``legacy/...`` are the legacy network's.
        object_weight: the vector (C,) that makes object maps of class maps (see ``camify.fit_object_map``), or None.
        object_map: how it was fitted, JSON values, or None.
        box_rule: how its maps become boxes (see ``camify.choose_box_rule``), or None: ``camify.boxes.DEFAULT_RULE``.
        license: of the legacy weights, as far as their source says, or None.
        recipe: the published network by name, or None.
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Linear,
        *,
        pool: str = "gap",
        dropout: float = 0.0,
        head_layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConversionError(f"pool={pool!r} is unknown. Choose one of {', '.join(POOLS)}.")
        self.features = features
        self.pool_name = pool
        self.pool = POOLS[pool]()
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier
        self.head_layers = tuple(head_layers)
        self.certificate: Certificate | None = None
        self.class_names: list[str] | None = None
        self._preprocessing: Preprocessing | None = None
        self._task: Task | None = None
        self.untrained: tuple[str, ...] = ()
        self.object_weight: Tensor | None
        self.register_buffer("object_weight", None)
        self.object_map: dict[str, Any] | None = None
        self.known_features: Callable[[CAMNet, Tensor], Tensor] | None = None  # while a run has them frozen
        self.register_load_state_dict_pre_hook(_expect_object_weight)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forget_untrained)  # type: ignore[no-untyped-call]
        self.results: dict[str, Any] = {}
        self.box_rule: BoxRule | None = None
        self.license: str | None = None
        self.recipe: str | None = None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How an image becomes the input; None where that is not known."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | Mapping[str, Any] | None) -> None:
        self._preprocessing = Preprocessing.of(value)

    @property
    def task(self) -> Task:
        """What the logits mean; set it by name or as a ``Task``. Where nobody said, what their number suggests."""
        return Task.of(self._task, self.num_classes)

    @task.setter
    def task(self, value: Task | str | None) -> None:
        self._task = None if value is None else Task.of(value, self.num_classes)

    @property
    def task_is_known(self) -> bool:
        """Whether somebody said what the logits mean, or there is but one."""
        return self._task is not None or self.num_classes == 1

    @property
    def classes(self) -> Classes:
        """What the logits speak of: the task and the names."""
        return Classes.of(self.task, self.class_names, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_with_maps(self, x: Tensor, kind: str = "plain") -> tuple[Tensor, Tensor]:
        """Logits (N, K) and the raw signed class maps (N, K, h, w) from one forward; both differentiable.

        Args:
            x: images (N, 3, H, W).
            kind: ``"plain"``: ``mean(map_k) + bias_k == logit_k``; ``"contrast"``: why this class and no other;
                ``"object"``: where the object is. The logits are the same ones with each, and of a softmax network
                ``mean(map_k) + bias_k`` gives the same probabilities (see ``camify.maps.map_weight``).

        Raises:
            ConfigError: the kind is unknown, or there is no object map.
        """
        features = self.forward_features(x)
        return self.forward_head(features), class_maps(features, self.map_weight(kind))

    def map_weight(self, kind: str = "plain", *, two_sided: bool = False) -> Tensor:
        """The weights (K, C) of the maps of a kind; of a network of one logit (2, C) with ``two_sided``."""
        weight = self.classes.two_sided(self.classifier.weight, 0) if two_sided else self.classifier.weight
        return map_weight(weight, kind, self.object_weight, exclusive=self.task.exclusive)

    @torch.no_grad()
    def predict_boxes(
        self, images: Tensor, classes: Tensor | None = None, *, rule: BoxRule | None = None
    ) -> list[Tensor]:
        """A box (1, 4) per image (N, 3, H, W), xyxy pixels, exclusive; (0, 4) where its map shows nothing.

        Several (n, 4), the largest region's first, where the rule says so.

        Args:
            images: the network's input.
            classes: (N,) whose map it is; None: the predicted ones.
            rule: instead of ``box_rule``; where both are None, ``camify.boxes.DEFAULT_RULE``, by Otsu.

        Raises:
            ConfigError: the rule cuts object maps, and the network has none.
            ConversionError: the network has no map of the rule's stride.
        """
        rule = rule or self.box_rule or DEFAULT_RULE
        logit_classes = self.classes
        with eval_mode(self):
            features = self.forward_features(images)
            logits = logit_classes.two_sided(self.forward_head(features))
            chosen = logit_classes.predicted(logits) if classes is None else classes.to(features.device)
            features = box_features(self, images, rule, {None: features})
        maps = rule.maps(features, self.map_weight(rule.kind, two_sided=True), chosen)
        return rule.boxes(maps, (images.shape[-2], images.shape[-1]))

    @property
    def num_features(self) -> int:
        """Channels of the last spatial map."""
        return self.classifier.in_features

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classifier.out_features

    def forward_features(self, x: Tensor) -> Tensor:
        """The last spatial map (N, C, h, w)."""
        if self.known_features is not None and not self.training and not torch.is_grad_enabled():
            return self.known_features(self, x)
        features: Tensor = self.features(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, K) of the last spatial map; the pooled features (N, C) with ``pre_logits``."""
        pooled: Tensor = self.dropout(self.pool(x).flatten(1))
        if pre_logits:
            return pooled
        logits: Tensor = self.classifier(pooled)
        return logits

    def get_classifier(self) -> nn.Linear:
        """The linear layer after pooling."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new random linear layer for ``num_classes`` in place; names and results are forgotten."""
        if num_classes < 1:
            raise ConversionError(f"num_classes={num_classes}: must be at least 1.")
        old = self.classifier.weight
        self.classifier = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype)
        self.class_names, self.results, self.certificate, self.box_rule = None, {}, None, None
        self.object_weight = self.object_map = None
        self.untrained = tuple(dict.fromkeys((*self.untrained, "classifier")))
        if self._task is not None and (self._task is Task.BINARY) != (num_classes == 1):
            self._task = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role: ``features`` (the legacy's) and ``head`` (new layers and the classifier)."""
        head = (*(f"features.{name}." for name in self.head_layers), "classifier.")
        groups: dict[str, list[nn.Parameter]] = {"features": [], "head": []}
        for name, parameter in self.named_parameters():
            groups["head" if name.startswith(head) else "features"].append(parameter)
        return groups

    @torch.no_grad()
    def identity_error(self, images: Tensor) -> float:
        """Largest relative ``|mean(map) + bias - logit|`` on ``images`` (N, 3, H, W), in eval mode.

        Of a network in half precision a float32 copy is measured, on a GPU without TF32: their rounding is no error.
        """
        wide = torch.promote_types(self.classifier.weight.dtype, torch.float32)
        with without_hooks(self), full_precision():
            net = self if self.classifier.weight.dtype == wide else copy.deepcopy(self).to(wide)
            with eval_mode(net):
                logits, maps = net.forward_with_maps(images.to(wide))
        bias = net.classifier.bias
        return identity_error(logits, maps, torch.zeros_like(logits[0]) if bias is None else bias)

    def manifest(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values: architecture, names, preprocessing, record, results."""
        return manifest_of(self)

    def finite_results(self) -> dict[str, Any]:
        """The results as JSON has them: what was not measured (NaN, infinity) is None."""
        return finite_values(self.results)

    def save_pretrained(self, folder: str | Path, *, overlays: bytes | None = None) -> Path:
        """Write the CAM-ready checkpoint: ``model.safetensors``, ``camify.json``, ``README.md``.

        Args:
            folder: new, or one that camify wrote before, which is replaced as a whole.
            overlays: a picture (PNG) of maps over images for the model card; kept as ``overlays.png``.

        What was written is loaded and compared, weights and answers, before the folder gets its name.

        Raises:
            CheckpointError: the folder holds something else, cannot be written, or does not give the network back.
            ConversionError: the features hold a layer that cannot be stored without code.
        """
        manifest = self.manifest()
        card = model_card(manifest, overlays=overlays is not None)
        return write_folder(
            folder, self.state_dict(), manifest, card, overlays, check=partial(compare_written, Path(folder), self)
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> CAMNet:
        """The network of a checkpoint folder, in eval mode, on the CPU; its identity is checked again.

        Needs neither the legacy network's code nor a network connection, and runs no foreign code. ``hf:user/name``, or
        ``user/name`` where no such folder exists, is a repository of the Hugging Face Hub (extra ``hub``), fetched into
        its cache. ``camify.load`` takes folders of runs and other forms too.

        Args:
            folder: written by ``save_pretrained``, or ``user/name``.
            revision: of the repository: branch, tag or commit.

        Raises:
            CheckpointError: a file is missing, damaged, contradicts the others, or the identity fails.
        """
        path = fetch_folder(str(folder), revision) if is_repository(folder) else Path(folder)
        with open_folder(path) as (tensors, manifest):
            return cls.from_parts(tensors, manifest, path / MANIFEST)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], path: Path) -> CAMNet:
        """The network of tensors and a manifest that ``path`` holds, in eval mode; its identity is checked.

        Raises:
            CheckpointError: they contradict each other, or the identity fails.
        """
        model: CAMNet = network_of(cls, tensors, manifest, path)
        return model


def _expect_object_weight(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Weights come with their object vector or without one."""
    stored, like = state.get(f"{prefix}object_weight"), next(module.parameters())
    empty = None if stored is None else torch.empty(stored.shape, dtype=like.dtype, device=like.device)
    module.register_buffer("object_weight", empty)


def _forget_untrained(module: nn.Module, _keys: Any) -> None:
    """Weights that are loaded are somebody's: no part counts as drawn any more."""
    module.untrained = ()  # type: ignore[assignment]
