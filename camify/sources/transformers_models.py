"""Image classifiers of Hugging Face's transformers (Wolf et al. 2020), which is an optional extra.

Their forwards compare shapes and return objects, which stops torch.fx at the first layer. So the steps are noted while
the network runs (``graphs.recorded``): that gives the layers that camify knows, and it follows all families that were
tried, ResNet to Swin. ``torch.export`` would give steps of another kind (aten), among which the layers would have to be
found again.
Where it fails, the network's own code is kept.

Of a folder only JSON and tensors are read. The class is one of transformers' own list; code that comes with the weights
(``auto_map``) is never run, and nothing is fetched. What config.json asks for is held against the tensors before memory
is taken, and no tensor stays random without a word.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..checkpoint.bounds import MOST_CLASSES, ForeseenSizes, allowed_bytes
from ..errors import CheckpointError, ConversionError
from ..graphs.padded_layers import SamePad2d
from ..graphs.recorded import RecordingError, record
from ..preprocessing import Preprocessing, sides_of
from ..task import Task
from .hub_files import CARD, CONFIG, PROCESSOR, license_of, read_json, read_weights
from .image_processors import preprocessing_of
from .source import Source
from .state_dicts import State
from .torchvision_models import Weightless
from .weight_files import misfit_error

__all__ = ["load_transformers"]

_LARGEST_NUMBER = 10**6  # in a config.json: of channels, layers, pixels
_SPARE = 2**22  # numbers that a network may have more than its file: a new head
_NOT_READ = re.compile(r"_.*|torch_?dtype|dtype|.*_implementation|.*kernels?(_config)?|fusion_config|pruned_heads"
                       r"|output_.*|return_dict|use_return_dict|torchscript|transformers_.*")  # fmt: skip
_OTHER_KINDS = ("timm_wrapper", "shieldgemma2")
_UNUSED = re.compile(r"(^|\.)(pooler|mask_token|position_ids|relative_position_index|num_batches_tracked)(\.|$)")
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_TOLERANCE = 1e-4  # of the largest logit


def load_transformers(folder: Path, name: str) -> Source:
    """The classifier of a folder that ``save_pretrained`` of transformers wrote.

    Args:
        folder: with config.json and safetensors.
        name: how the source is named.

    Raises:
        ConversionError: transformers is not installed, or has no image classifier of that kind.
        CheckpointError: a file is missing or damaged, its weights do not fit, or it needs code of its own.
    """
    config = read_json(folder / CONFIG)
    _refuse_foreign(config, folder)
    kind = _kind(config, folder)
    notes: list[str] = []
    state = read_weights(folder, notes)
    channels = _option(kind.config, "num_channels") or 3
    processor = folder / PROCESSOR
    preprocessing = preprocessing_of(read_json(processor), channels, notes) if processor.is_file() else None
    sizes = _sizes(kind.config, preprocessing)
    _check_size(kind, state, folder)
    network, missing = _with_weights(kind, state, name, notes)
    model, size = _followed(network, channels, sizes, name, notes)
    if preprocessing is not None and sides_of(preprocessing.size) != size:
        notes.append(f"its network takes {size[0]} x {size[1]} px, its image processor gives {preprocessing.size}")
        preprocessing = replace(preprocessing, size=size)
    names = None if missing else _class_names(config, folder, notes)
    task = _task(config, names, notes)
    license_name = license_of(folder / CARD)
    return Source(
        model, name, names, tuple(notes), preprocessing, license_name, task, missing, input_size=size, channels=channels
    )


# ---------------------------------------------------------------- the network that config.json names


@dataclass(frozen=True)
class _Kind:
    """A class of transformers and its configuration.

    ``whole``: the file says that it is of this class; else it is of the same family without this head.
    """

    network: Any
    config: Any
    whole: bool


def _refuse_foreign(config: Mapping[str, Any], folder: Path) -> None:
    where = folder / CONFIG
    if config.get("auto_map"):
        raise CheckpointError(
            f"{where}: names code that comes with the weights (auto_map), which camify never runs. Build the network"
            " in Python, and pass it."
        )
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: of quantized weights. Give the weights in float32 or half precision.")
    largest = max(_numbers_in(config), default=0)
    if largest > _LARGEST_NUMBER:
        raise CheckpointError(f"{where}: holds the number {largest}, which no image classifier needs.")
    channels = config.get("num_channels", 3)
    if type(channels) is not int or channels < 1:
        raise CheckpointError(f"{where}: field num_channels is {str(channels)[:40]}, no number of channels.")
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or len(labels) > MOST_CLASSES:
        raise CheckpointError(f"{where}: field id2label does not name classes.")


def _numbers_in(value: Any, depth: int = 8) -> Iterator[int]:
    """All whole numbers of a config, and of every list the sum."""
    if isinstance(value, int):
        yield abs(value)
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            if key not in ("label2id", "transformers_version") and not key.endswith("_token_id"):
                yield from _numbers_in(item, depth - 1)
    elif isinstance(value, list) and depth:
        yield sum(abs(item) for item in value if isinstance(item, int))
        for item in value:
            yield from _numbers_in(item, depth - 1)


def _kind(config: Mapping[str, Any], folder: Path) -> _Kind:
    try:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN
    except ImportError as error:
        raise ConversionError(
            f"{folder}: is a network of transformers, which cannot be imported ({error}). Install it: pip install"
            " 'camify[transformers]'"
        ) from error
    model_type, architectures = config.get("model_type"), config.get("architectures")
    written = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(model_type, str) or model_type not in KNOWN or model_type in _OTHER_KINDS:
        raise ConversionError(
            f"{folder}: is a network of transformers of the kind {str(model_type)[:60]!r} ({str(written)[:60]}), of"
            f" which transformers {transformers.__version__} has no image classifier that camify reads."
        )
    names = KNOWN[model_type]
    names = (names,) if isinstance(names, str) else tuple(names)
    name = str(written) if written in names else names[0]
    values = {key: value for key, value in config.items() if not _NOT_READ.fullmatch(key)}
    try:
        built = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # of a damaged config it raises whatever its values lead to
        raise CheckpointError(f"{folder / CONFIG}: {_first_line(error)}") from error
    return _Kind(getattr(transformers, name), built, written in names)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _option(config: Any, name: str) -> Any:
    """An option of a configuration, or of that of its image part."""
    value = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if value is None else value


def _sizes(config: Any, preprocessing: Preprocessing | None) -> list[tuple[int, int]]:
    """Heights and widths that the network may take, likeliest first."""
    own = sides_of(_option(config, "image_size"))
    given = None if preprocessing is None else sides_of(preprocessing.size)
    return list(dict.fromkeys(size for size in (given, own) if size is not None)) or [(224, 224)]


def _check_size(kind: _Kind, state: State, folder: Path) -> None:
    """Build the network without memory, and compare it with the tensors of the file.

    Raises:
        CheckpointError: it asks for more than they hold.
    """
    where, most = folder / CONFIG, 4 * len(state) + 64
    count = 0

    def counted(module: nn.Module, name: str, parameter: Any) -> None:  # noqa: ARG001 - as torch calls it
        nonlocal count
        count += 1
        if count > most:
            raise CheckpointError(f"{where}: asks for more layers than the {len(state)} tensors of the file fill.")

    hook = nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        with Weightless(), ForeseenSizes(allowed_bytes(0)):
            network = kind.network(kind.config)
    except CheckpointError as error:
        raise error if str(error).startswith(str(where)) else CheckpointError(f"{where}: {error}.") from error
    except Exception as error:  # of a damaged config it raises whatever its values lead to
        raise CheckpointError(f"{where}: no network can be built of it ({_first_line(error)}).") from error
    finally:
        hook.remove()
    needed, held = (sum(tensor.numel() for tensor in tensors) for tensors in (network.parameters(), state.values()))
    if needed > 2 * held + _SPARE:
        raise CheckpointError(f"{where}: asks for {needed:.3g} numbers; the file holds {held:.3g}. Is one damaged?")


# ---------------------------------------------------------------- its weights


def _with_weights(kind: _Kind, state: State, name: str, notes: list[str]) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with the tensors of the file, and the names of its head's where the file holds none."""
    with _silent():
        try:
            network, info = kind.network.from_pretrained(
                None, config=kind.config, state_dict=dict(state), output_loading_info=True,
                ignore_mismatched_sizes=True, torch_dtype=torch.float32, local_files_only=True,
            )  # fmt: skip
        except Exception as error:  # of tensors that fit nothing it raises its own kinds
            raise CheckpointError(
                f"{name}: the weights cannot be put into the network ({_first_line(error)})."
            ) from error
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    misshapen = {key: shape for key, shape, _ in info["mismatched_keys"]}
    missing = [key for key in missing if key not in misshapen]
    base = f"{network.base_model_prefix}."
    head = tuple(key for key in network.state_dict() if not key.startswith(base))
    headless = bool(missing) and set(missing) <= set(head) and not any(key in head for key in state)
    left_out = [key for key in unknown if _UNUSED.search(key) or (headless and not kind.whole)]
    if left_out:
        more = ", ..." if len(left_out) > 4 else ""
        notes.append(f"{len(left_out)} tensors that the logits do not need left out: {', '.join(left_out[:4])}{more}")
    unknown = [key for key in unknown if key not in left_out]
    if misshapen or unknown or (missing and not headless):
        held = state | {key: torch.empty(tuple(shape), device="meta") for key, shape in misshapen.items()}
        raise misfit_error(name, held, network.state_dict(), notes, (missing, unknown, list(misshapen)))
    if headless:
        notes.append(f"the file holds the features alone; of the head {', '.join(missing)} are missing and random")
    return network.float().eval(), tuple(missing)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No bars and tables of transformers are printed: what matters is said by camify."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ---------------------------------------------------------------- its steps


class _Logits(nn.Module):
    """A network of transformers that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        logits: Tensor = self.network(images).logits
        return logits


def _followed(
    network: nn.Module, channels: int, sizes: list[tuple[int, int]], name: str, notes: list[str]
) -> tuple[nn.Module, tuple[int, int]]:
    """The network as steps that camify knows, or in its own code; and the size of the images that it takes.

    Raises:
        ConversionError: it runs on none of the sizes.
    """
    _use_known_layers(network)
    whole, reason = _Logits(network).eval(), ""
    for size in sizes:
        try:
            images = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad(), ForeseenSizes(allowed_bytes(images.nbytes)):
                expected = whole(images)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}.") from error
        except Exception as error:  # noqa: BLE001 - a network of a file: it fails as it likes
            reason = reason or _first_line(error)
            continue
        try:
            steps = record(network, (channels, *size), lambda returned: returned.logits)
            with torch.no_grad():
                difference = float((steps(images) - expected).abs().max())
        except (RecordingError, RuntimeError) as error:
            notes.append(f"its steps cannot be written down ({_first_line(error)}): its own code is kept, and a result"
                         " cannot be saved without it")  # fmt: skip
            return whole, size
        if difference <= _TOLERANCE * float(expected.abs().max().clamp_min(1e-6)):
            return steps, size
        notes.append(
            "its steps give other logits than its own code, which is kept: a result cannot be saved without it"
        )
        return whole, size
    raise ConversionError(f"{name}: the network cannot run on images of {sizes[0][0]} x {sizes[0][1]}: {reason}")


def _use_known_layers(network: nn.Module) -> None:
    """Put layers that camify knows in the place of transformers' own that do the same, under the same names."""
    for path, module in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        kind = type(module).__name__
        if kind.endswith("DropPath"):
            share = module.drop_prob or 0.0
            layer = torchvision.ops.StochasticDepth(float(share), "row") if share else nn.Identity()
        elif kind in ("MobileNetV1ConvLayer", "MobileNetV2ConvLayer"):
            layer = _padded(module)
        else:
            continue
        setattr(network.get_submodule(parent), name, layer)


def _padded(block: Any) -> nn.Module:
    """A block of MobileNet whose padding follows the size of the image, as TensorFlow does it."""
    conv = block.convolution
    layers: dict[str, nn.Module | None] = {
        "padding": SamePad2d(conv.kernel_size, conv.stride, conv.dilation) if block.config.tf_padding else None,
        "convolution": conv,
        "normalization": block.normalization,
        "activation": block.activation,
    }
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


# ---------------------------------------------------------------- what its classes are


def _class_names(config: Mapping[str, Any], folder: Path, notes: list[str]) -> list[str] | None:
    """The names of the classes in the order of the logits; None where they are placeholders.

    Raises:
        CheckpointError: ``id2label`` does not give every class one name.
    """
    labels = config.get("id2label")
    if not labels:
        return None
    order = {int(key): value for key, value in labels.items() if key.isdecimal() and isinstance(value, str)}
    if order.keys() != set(range(len(labels))):
        raise CheckpointError(f"{folder / CONFIG}: field id2label does not give every index from 0 a name.")
    names = [order[index] for index in range(len(order))]
    if all(_PLACEHOLDER.fullmatch(name) for name in names):
        notes.append("its classes have no names (LABEL_0, ...)")
        return None
    return names


def _task(config: Mapping[str, Any], names: list[str] | None, notes: list[str]) -> Task | None:
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        return Task.MULTILABEL
    if problem == "regression":
        notes.append("it was trained for regression: its outputs are taken for logits")
        return None
    single = names is not None and len(names) > 1
    return Task.MULTICLASS if single or problem == "single_label_classification" else None
