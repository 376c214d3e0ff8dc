"""The network that an exported file holds: image in, named outputs out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..box_features import box_features
from ..boxes import DEFAULT_RULE, BoxRule, largest_boxes, percentile
from ..errors import ConfigError
from ..eval_mode import without_hooks
from ..maps import class_maps, contrast_maps, interpolated
from ..model import CAMNet
from ..normalizers import scale_maps
from ..preprocessing import Preprocessing

__all__ = ["ExportedNetwork", "prepared"]


class ExportedNetwork(nn.Module):
    """Logits (N, K), raw maps (N, K, h, w) and, where they are, object maps (N, K, h, w) and boxes (N, 4) of a batch.

    Object maps come out of a network that has them (see ``camify.fit_object_map``).

    Boxes are the rule's of the top-1 class, xyxy, exclusive, in pixels of the given images: the map is upsampled,
    scaled and cut at the threshold, and the largest component's box is taken, as ``CAMNet.predict_boxes`` does. Zeros
    where there is none.

    Args:
        model: the network, in eval mode.
        preprocessing: as in ``model.preprocessing``: then the input is uint8 RGB (N, H, W, 3), as image readers give
            it, and is resized (antialiased, aspect not kept), scaled and normalized inside. None: the input is
            (N, C, H, W), prepared.
        rule: how the maps become boxes; None gives no boxes.
    """

    def __init__(self, model: CAMNet, preprocessing: Preprocessing | None, rule: BoxRule | None) -> None:
        super().__init__()
        self.model, self.rule = model, rule
        self.size = None if preprocessing is None else (preprocessing.height, preprocessing.width)
        self.input_format = None if preprocessing is None else preprocessing.input_format
        if preprocessing is not None:
            for name in ("mean", "std"):
                value = torch.tensor(getattr(preprocessing, name), dtype=torch.float32).reshape(1, -1, 1, 1) * 255
                self.register_buffer(name, value)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what comes out, in order."""
        object_maps = ("object_maps",) if self.model.object_weight is not None else ()
        return ("logits", "maps", *object_maps, *(("boxes",) if self.rule is not None else ()))

    @property
    def notes(self) -> list[str]:
        """What has to be said of the boxes."""
        several = self.rule is not None and self.rule.regions == "all"
        return ["boxes: one an image, of the largest region; the box rule gives every region's"] if several else []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs of a batch."""
        prepared = image if self.size is None else self._prepare(image, self.size)
        features, weight = self.model.forward_features(prepared), self.model.classifier.weight
        logits, maps = self.model.forward_head(features), class_maps(features, weight)
        outputs: tuple[Tensor, ...] = (logits, maps)
        if self.model.object_weight is not None:
            outputs = (*outputs, self._object_maps(features, maps, self.model.object_weight))
        if self.rule is None:
            return outputs
        height, width = prepared.shape[-2:]
        box_maps = self._box_maps(prepared, features, self.rule)
        # camify.maps.select fixes the batch
        top = logits.argmax(1)[:, None, None, None].expand(-1, 1, *box_maps.shape[2:])
        heat = interpolated(box_maps.gather(1, top)[:, 0], (height, width))
        heat = scale_maps(heat, self.rule.normalizer, self.rule.percentile, find=percentile)
        boxes = largest_boxes(self.rule.cut(heat))
        if self.size is not None:
            sides = torch.ones_like(image[:1, :, :, 0], dtype=torch.float32)
            across, down = sides[:, 0].sum() / width, sides[:, :, 0].sum() / height
            boxes = boxes * torch.stack([across, down, across, down])
        return (*outputs, boxes)

    def _box_maps(self, images: Tensor, features_NCHW: Tensor, rule: BoxRule) -> Tensor:
        """The maps that the rule cuts, (N, K, h, w)."""
        weight = rule.weight(self.model.map_weight(rule.kind))
        return class_maps(box_features(self.model, images, rule, {None: features_NCHW}), weight)

    def _object_maps(self, features_NCHW: Tensor, maps_NKHW: Tensor, object_C: Tensor) -> Tensor:
        """From the class maps and one map more, which costs next to nothing beside them."""
        return contrast_maps(maps_NKHW, exclusive=self.model.task.exclusive) + class_maps(features_NCHW, object_C[None])

    def _prepare(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        pixels = F.interpolate(image.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", antialias=True)
        if self.input_format == "bgr":
            pixels = pixels.flip(1)
        if self.input_format == "grayscale":  # ITU-R 601, as torchvision's and Pillow's
            pixels = (pixels * torch.tensor([0.2989, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")


def prepared(model: CAMNet, *, preprocess: bool, boxes: bool) -> ExportedNetwork:
    """The network to export, a float32 copy on the CPU in eval mode; the model stays as it is.

    Raises:
        ConfigError: what is wanted needs something that the model does not say.
    """
    if preprocess and model.preprocessing is None:
        raise ConfigError("preprocess=True: the model does not say how. Set model.preprocessing (see Preprocessing).")
    if preprocess and model.preprocessing is not None and model.preprocessing.input_format == "channels":
        raise ConfigError(
            f"preprocess=True: the network takes {model.preprocessing.channels} channels, which no picture has. Leave"
            " it out, and give the file prepared tensors."
        )
    with without_hooks(model):
        plain = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    plain.known_features = None
    network = ExportedNetwork(
        plain, model.preprocessing if preprocess else None, (model.box_rule or DEFAULT_RULE) if boxes else None
    )
    return network.eval()
