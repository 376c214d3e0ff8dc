"""What a network of a file may need, known before it runs: on the meta device its steps have shapes and no memory."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import CheckpointError
from ..preprocessing import LARGEST_SIDE, MOST_CHANNELS

__all__ = [
    "LARGEST_NUMBER",
    "MOST_CLASSES",
    "MOST_FEATURES",
    "MOST_STEPS",
    "ForeseenSizes",
    "allowed_bytes",
    "check_needs",
    "check_power",
]

MOST_CLASSES = MOST_FEATURES = 10**6
MOST_STEPS = 20_000
"""Of a graph."""
LARGEST_NUMBER = 2**31
_LARGEST_POWER = 64
_BYTES = 2**28  # beside what grows with the images
_GROWTH = 512  # as many bytes for every byte of the images; the attention of small patches takes 200
_OPERATORS = {function for function in vars(operator).values() if callable(function)}


def allowed_bytes(images: int) -> int:
    """How many bytes the values that a file's steps make of images may take, given the bytes of these."""
    return _BYTES + _GROWTH * images


def check_needs(model: nn.Module, features: nn.Module, shape: Sequence[int]) -> None:
    """Run a network that is on the meta device, and whose features are ``features``, on images of a shape.

    Raises:
        CheckpointError: a step makes far larger tensors or numbers than such an image needs, or does not run at all.
    """
    if shape[0] > MOST_CHANNELS or max(shape[1:]) > LARGEST_SIDE:
        raise CheckpointError(
            f"the network does not run on images {tuple(shape)}: at most {MOST_CHANNELS} channels and {LARGEST_SIDE}"
            " pixels a side are read"
        )
    images = torch.empty(1, *shape, device="meta")
    allowed = allowed_bytes(images.nbytes)
    try:
        with torch.no_grad(), _SmallTensors(allowed):
            if isinstance(features, fx.GraphModule):
                _SmallNumbers(features, allowed).run(images)
            model(images)
    except CheckpointError:
        raise
    except Exception as error:  # the network is the file's: it can fail in any way
        raise CheckpointError(f"the network does not run on images {tuple(shape)} ({error})") from error


def check_power(base: Any, exponent: Any) -> None:
    """Refuse a power of Python's numbers that could fill the memory with its digits.

    Raises:
        CheckpointError: the exponent is too large.
    """
    if isinstance(base, Tensor) or isinstance(exponent, Tensor):
        return
    if not isinstance(base, int | float) or not isinstance(exponent, int | float) or abs(exponent) > _LARGEST_POWER:
        raise CheckpointError(f"architecture: a power of numbers, {base!r:.40} ** {exponent!r:.40}, is not read")


class _SmallTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose results are larger than allowed (bytes)."""

    def __init__(self, allowed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operation and look at what it gave."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, Tensor) and value.nbytes > self.allowed:
                raise CheckpointError(
                    f"architecture: the step {func} makes a tensor {tuple(value.shape)} of {value.nbytes / 2**30:.3g}"
                    f" GiB; for such images camify allows {self.allowed / 2**30:.3g} GiB"
                )
        return result


class ForeseenSizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose results would be larger than allowed (bytes), before they take memory.

    For code that cannot be run on the meta device as a whole, as it keeps tensors for its next call.
    """

    def __init__(self, allowed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Look at what an operation would give, and run it."""
        options = dict(kwargs or {})
        shapes = tree_map_only(Tensor, lambda value: value.to("meta"), (args, options))
        if any(argument.name == "device" for argument in func._schema.arguments):
            shapes[1]["device"] = "meta"
        on_meta = options.get("device") is not None and torch.device(options["device"]).type == "meta"
        try:
            foreseen = () if on_meta else tree_leaves(func(*shapes[0], **shapes[1]))
        except Exception:  # noqa: BLE001 - operations whose results depend on values have no shape before
            foreseen = ()
        for value in foreseen:
            if isinstance(value, Tensor) and value.nbytes > self.allowed:
                raise CheckpointError(
                    f"the step {func} makes a tensor {tuple(value.shape)} of {value.nbytes / 2**30:.3g} GiB; for such"
                    f" images camify allows {self.allowed / 2**30:.3g} GiB"
                )
        return func(*args, **options)


class _SmallNumbers(fx.Interpreter):
    """Refuses Python's operators on anything but tensors and numbers of usual size: lists and text can be repeated.

    And more tensors (bytes) at one moment than are allowed.
    """

    def __init__(self, module: fx.GraphModule, allowed: int) -> None:
        super().__init__(module)
        self.allowed = allowed

    def run_node(self, n: fx.Node) -> Any:
        """Run a step and add up what later steps still need."""
        result = super().run_node(n)
        needed = sum(value.nbytes for value in (*self.env.values(), result) if isinstance(value, Tensor))
        if needed > self.allowed:
            raise CheckpointError(
                f"architecture: at the step {n.name} the tensors need {needed / 2**30:.3g} GiB; for such images camify"
                f" allows {self.allowed / 2**30:.3g} GiB"
            )
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a step and look at what it takes and gives."""
        if target in _OPERATORS:
            self._check_operands(target, args)
        result = super().call_function(target, args, kwargs)
        if isinstance(result, int) and abs(result) >= 2**63:
            bits = result.bit_length()
            raise CheckpointError(f"architecture: the step {self._name(target)} gives a number of {bits} bits")
        return result

    @staticmethod
    def _name(target: Any) -> str:
        return str(getattr(target, "__name__", target))

    def _check_operands(self, target: Any, args: Sequence[Any]) -> None:
        if target in (operator.pow, operator.ipow) and len(args) > 1:
            check_power(args[0], args[1])
        joins = target in (operator.add, operator.iadd, operator.getitem)
        wrong = next((arg for arg in args if not joins and not isinstance(arg, Tensor | int | float)), None)
        if wrong is not None:
            raise CheckpointError(f"architecture: the step {self._name(target)} takes a {type(wrong).__name__}")
