"""The activation that a network may end in, behind its logits: taken off, so that maps explain logits."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..task import Task

__all__ = ["ACTIVATION_MODULES", "activation_name", "take_off", "task_of"]

ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "log_sigmoid",
}
_FUNCTIONS = {
    "softmax": (F.softmax, torch.softmax, "softmax"),
    "log_softmax": (F.log_softmax, torch.log_softmax, "log_softmax"),
    "sigmoid": (F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"),
    "log_sigmoid": (F.logsigmoid,),
    "log": (torch.log, "log"),
}
_IDLE = (nn.Identity, nn.Dropout)
_ENDINGS = (*([name] for name in ACTIVATION_MODULES.values()), ["log", "softmax"], ["log", "sigmoid"])


def task_of(activation: str | None, logits: int) -> Task | None:
    """The task that an activation behind the logits implies; None where there is none."""
    if activation is None:
        return None
    if activation.endswith("softmax"):
        return Task.MULTICLASS
    return Task.BINARY if logits == 1 else Task.MULTILABEL


def activation_name(layer: nn.Module) -> str | None:
    """The name of an activation layer over the classes; None of any other layer."""
    name = ACTIVATION_MODULES.get(type(layer))
    return name if name is None or getattr(layer, "dim", None) in (None, 1, -1) else None


def take_off(network: nn.Module, graph: fx.Graph) -> str | None:
    """Take a last softmax, log-softmax or sigmoid over the classes out of a graph, in place; its name, or None.

    Only what stands behind everything else counts: an activation that something follows is a part of the network.
    """
    output = graph.output_node()
    (end,) = output.args if len(output.args) == 1 else (None,)
    if not isinstance(end, fx.Node):
        return None
    step, names = end, list[str]()
    while len(step.all_input_nodes) == 1:
        name = _name_of(network, step)
        if name is None:
            break
        names += [name] if name != "idle" else []
        step = step.all_input_nodes[0]
    if names not in (
        ["softmax"],
        ["log_softmax"],
        ["sigmoid"],
        ["log_sigmoid"],
        ["log", "softmax"],
        ["log", "sigmoid"],
    ):
        return None
    output.args = (step,)
    while end is not step:
        before = end.all_input_nodes[0]
        graph.erase_node(end)
        end = before
    return names[0] if len(names) == 1 else f"log_{names[1]}"


def _name_of(network: nn.Module, step: fx.Node) -> str | None:
    if step.op == "call_module":
        layer = network.get_submodule(str(step.target))
        return "idle" if isinstance(layer, _IDLE) else activation_name(layer)
    if step.op not in ("call_function", "call_method"):
        return None
    name = next((name for name, targets in _FUNCTIONS.items() if step.target in targets), None)
    dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
    return name if name is not None and (not name.endswith("softmax") or dim in (None, 1, -1)) else None
