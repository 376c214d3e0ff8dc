"""Networks as data: round trips through JSON, and descriptions that try to run something."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

from camify.checkpoint import architecture
from camify.errors import CheckpointError, ConversionError
from camify.graphs import allowed_layers as known_layers
from camify.graphs import fx_modules as graphs

MODELS = torchvision.models


class Mixed(nn.Module):
    """Functions, methods, operators, slices, constants, sizes, dtypes and infinities."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, groups=1, bias=False, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, 8)
        self.gain = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("shift", torch.randn(8, 1, 1))

    def forward(self, image, scale=2.0):
        x = self.norm(self.conv(image))
        x = x * self.gain + self.shift.to(torch.float32)
        x = torch.cat([x[:, :4], x[:, 4:, ...]], dim=1)
        x = x.clamp(min=-1.5, max=float("inf"))
        a, b = x.chunk(2, 1)
        x = torch.cat((F.gelu(a, approximate="tanh"), b.sigmoid()), 1)
        x = x.view(x.shape[0], -1, x.size(2), x.size(3))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return -F.max_pool2d(x, kernel_size=(2, 2), stride=1, padding=1) / scale


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding="valid", dilation=2),
        nn.BatchNorm2d(8, eps=1e-3, momentum=None),
        nn.PReLU(8),
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False, divisor_override=3),
        nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, bias=False),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.LocalResponseNorm(3, alpha=2e-4),
        nn.PixelShuffle(1),
        nn.Hardtanh(-2.0, 2.0),
        nn.LPPool2d(2, 2),
        nn.GELU(approximate="tanh"),
        nn.LeakyReLU(0.3, inplace=True),
        nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
        nn.Dropout2d(0.3),
        torchvision.ops.StochasticDepth(0.2, "row"),
        nn.MaxPool2d(3, 2, 1, return_indices=False, ceil_mode=True),
        nn.AdaptiveAvgPool2d((None, 4)),
        nn.Softplus(beta=2.0),
    )


def trunk(network: nn.Module, node: str) -> fx.GraphModule:
    """The network up to a node, by torch's own tracing."""
    graph = graphs.LayerTracer().trace(network)
    for step in list(reversed(graph.nodes)):
        if step.name == node:
            break
        graph.erase_node(step)
    graph.output(step)
    return fx.GraphModule(network, graph)


NETS = {
    "layers": (layers, 32),
    "mixed": (Mixed, 16),
    "vgg11_bn": (lambda: MODELS.vgg11_bn(init_weights=False).features, 32),
    "alexnet": (lambda: MODELS.alexnet().features, 64),
    "squeezenet": (lambda: MODELS.squeezenet1_0(), 64),
    "resnet18": (lambda: MODELS.resnet18(), 32),
    "densenet121": (lambda: MODELS.densenet121(), 32),
    "googlenet": (lambda: MODELS.googlenet(init_weights=False, aux_logits=False, transform_input=True), 64),
    "shufflenet": (lambda: MODELS.shufflenet_v2_x0_5(), 32),
    "mobilenet_v3_small": (lambda: MODELS.mobilenet_v3_small(), 32),
    "efficientnet_b0": (lambda: MODELS.efficientnet_b0(), 32),
    "regnet_y_400mf": (lambda: MODELS.regnet_y_400mf(), 32),
    "convnext": (lambda: MODELS.convnext_tiny(), 32),
    "trunk": (lambda: trunk(MODELS.resnet18(), "layer2_0_relu_1"), 32),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_comes_back_from_json_with_the_same_outputs(name):
    build, size = NETS[name]
    network = build().eval()
    data = json.loads(json.dumps(architecture.describe(network), allow_nan=False))
    again = architecture.build(data)
    assert all(tensor.is_meta for tensor in again.state_dict().values())
    # the prefix that all layers share may be gone: tensors come in the same order
    tensors = list(network.state_dict().values())
    assert len(tensors) == len(again.state_dict())
    names = dict(zip(again.state_dict(), tensors, strict=True)) if name != "mixed" else network.state_dict()
    again.load_state_dict(names, strict=True, assign=True)
    again.eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    assert architecture.describe(again)["layers"].keys() == data["layers"].keys() or name in (
        "vgg11_bn",
        "alexnet",
    )
    kinds = {type(module) for module in again.modules() if not list(module.children())} - {nn.Module}
    assert kinds == {known_layers.LAYERS[entry["type"]] for entry in data["layers"].values()}


def test_every_layer_option_survives():
    network = layers()
    again = architecture.build(json.loads(json.dumps(architecture.describe(network))))
    assert [repr(layer) for layer in again] == [repr(layer) for layer in network]


def test_a_plain_chain_is_a_sequential_without_generated_code():
    assert type(architecture.build(architecture.describe(layers()))) is nn.Sequential
    assert isinstance(architecture.build(architecture.describe(Mixed())), fx.GraphModule)


class Custom(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class WithTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.constant = torch.ones(3, 1, 1)

    def forward(self, x):
        return x * self.constant


def test_what_cannot_be_stored_without_code_is_refused_by_name():
    class Own(nn.Conv2d):
        pass

    Own.__module__ = "torch.nn.own"  # a leaf for torch.fx
    with pytest.raises(ConversionError, match=r"layer inner: torch\.nn\.own.*Own cannot be stored"):
        architecture.describe(Custom(Own(3, 3, 1)))
    with pytest.raises(ConversionError, match=r"layer inner: .*Threshold cannot be stored"):
        architecture.describe(Custom(nn.Threshold(0.1, 0.0)))
    with pytest.raises(ConversionError, match=r"function cumsum cannot be stored"):
        architecture.describe(Custom(lambda x: torch.cumsum(x, 1)))
    with pytest.raises(ConversionError, match=r"method cumsum\(\) cannot be stored"):
        architecture.describe(Custom(lambda x: x.cumsum(1)))
    with pytest.raises(ConversionError, match=r"function getattr cannot be stored"):
        architecture.describe(Custom(lambda x: x.T))
    with pytest.raises(ConversionError, match=r"value .*cannot be stored"):
        architecture.describe(Custom(lambda x: x.to(torch.device("cpu"))))
    with pytest.raises(ConversionError, match=r"constant.*cannot be stored"):
        architecture.describe(WithTensor())


# ---------------------------------------------------------------- hostile descriptions


CONV = {"type": "Conv2d", "options": {"in_channels": 3, "out_channels": 4, "kernel_size": 3}}


def node(name, op, target, *args, **kwargs):
    entry = {"name": name, "op": op, "target": target, "args": {"tuple": list(args)}}
    return entry | ({"kwargs": kwargs} if kwargs else {})


def ref(name):
    return {"node": name}


def description(*nodes, layers=None, tensors=None, result="y"):
    return {
        "layers": {"conv": CONV} if layers is None else layers,
        "tensors": tensors or {},
        "nodes": [node("x", "placeholder", "x"), *nodes, node("output", "output", "output", ref(result))],
    }


CALL = node("y", "call_module", "conv", ref("x"))
ADD = node("y", "call_function", "torch.add", ref("x"), 1)


def run(data) -> object:
    """Build and, where that works, run: code that gets in may wait for the first image."""
    network = architecture.build(data)
    network.to_empty(device="cpu")
    return network(torch.randn(1, 3, 8, 8))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder to run in; nothing may appear in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_harmless_ones_work():
    assert run(description(CALL)).shape == (1, 4, 6, 6)
    assert run(description(ADD)).shape == (1, 3, 8, 8)
    shape = node("s", "call_function", "getattr", ref("x"), "shape")
    first = node("y", "call_function", "operator.getitem", ref("s"), 1)
    assert run(description(shape, first)) == 3


CODE = "__import__('pathlib').Path('ran').touch()"
NAMES = [
    f"x = {CODE}",
    f"x\n    {CODE}\n    y",
    f"x): {CODE}; #",
    f"x={CODE}",
    "",
    "a b",
    "a.b",
    "1a",
    "class",
    "None",
    "self",
    "torch",
    "é",
    "\uff53\uff45\uff4c\uff46",
    "x\u2028y",
    "*args",
    "**kwargs",
    "x: __import__('os')",
    None,
    3,
    [],
    {},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["step", "input", "both", "argument"])
def test_names_cannot_carry_code(trap, name, place):
    data = description(copy.deepcopy(ADD))
    first, second = data["nodes"][:2]
    if place in ("step", "both"):
        first["name"] = name
        second["args"] = {"tuple": [{"node": name}, 1]}
    if place in ("input", "both"):
        first["target"] = name
    if place == "argument":
        second["kwargs"] = {name if isinstance(name, str) else str(name): 1}
    with pytest.raises((CheckpointError, TypeError)) as refusal:
        run(data)
    assert refusal.type is CheckpointError or (place == "argument" and name in (None, 3, [], {}))
    assert list(trap.iterdir()) == []


LAYER_NAMES = [
    "a..b", ".a", "a.", "", ".", "forward", "__class__", "__init__", "_modules", "training", "parameters", "eval",
    "conv.weight", "conv.forward", "conv.__class__", "x.__dict__", "add_module", "to_folder", "recompile", "graph",
    "code", "meta", "print_readable", "add_submodule", "_graph", "_tracer_cls", "shape_env", "_replace_hooks",
    "class", "lambda", "a.class", 'a"b', "a\\b", "a\nb", f"a({CODE})", f"a; {CODE} #", 'a")', "a b", "é", "a" * 501,
    None, 3,
]  # fmt: skip


@pytest.mark.parametrize("name", LAYER_NAMES)
@pytest.mark.parametrize("with_arguments", [True, False])
def test_layer_names_cannot_reach_beyond_the_layers(trap, name, with_arguments):
    if name == "shape_env" and not hasattr(fx.GraphModule(nn.Module(), fx.Graph()), name):
        pytest.skip("a plain layer name for this torch")
    arguments = ("pwned", f"M: pass\n{CODE}\nclass N") if with_arguments else (ref("x"),)
    call = node("z", "call_module", name, *arguments)
    data = description(CALL, call, layers={"conv": CONV, name: CONV})
    # a name that this version of torch does not use is a layer like others, which refuses the arguments
    with pytest.raises((CheckpointError, TypeError) if with_arguments else CheckpointError):
        run(data)
    assert list(trap.iterdir()) == []


@pytest.mark.parametrize("prefix", ["a.", "a.b."])
@pytest.mark.parametrize("name", ["to_folder", "graph", "recompile", "code"])
def test_a_shared_prefix_does_not_lift_a_layer_onto_a_method(trap, prefix, name):
    call = node("z", "call_module", prefix + name, "pwned", "Evil")
    keep = node("y", "call_module", f"{prefix}conv", ref("x"))
    data = description(keep, call, layers={f"{prefix}conv": CONV, prefix + name: CONV})
    with pytest.raises(CheckpointError):
        run(data)
    assert list(trap.iterdir()) == []


@pytest.mark.parametrize("name", ["forward", "to_folder", "a..b", "__class__", "conv.x.y", "graph", 'a"', "", None])
@pytest.mark.parametrize("parameter", [True, False])
def test_tensor_names_cannot_either(trap, name, parameter):
    read = node("z", "get_attr", name)
    data = description(CALL, read, tensors={name: {"shape": [2], "parameter": parameter}})
    if name == "conv.x.y":
        run(data)  # a tensor of an invented submodule: allowed, and nothing but a tensor
    else:
        with pytest.raises(CheckpointError):
            run(data)
    assert list(trap.iterdir()) == []


def test_a_step_cannot_stand_in_for_the_module(trap):
    """`self = x + 0` would make every later `self.layer(...)` a method call on a tensor."""
    take = node("self", "call_method", "add", ref("x"), 0)
    call = node("y", "call_module", "numpy")
    with pytest.raises(CheckpointError, match=r"node name 'self'"):
        run(description(take, call, layers={"numpy": CONV}))
    # the same through a layer of that name, after which torch.fx would name the step
    with pytest.raises(CheckpointError):
        run(description(node("y", "call_module", "self", ref("x")), CALL | {"name": "z"}, layers={"self": CONV}))


FUNCTIONS = [
    "os.system", "builtins.eval", "builtins.exec", "eval", "exec", "open", "__import__", "torch.load", "torch.save",
    "torch.hub.load", "torch.ops.load_library", "operator.methodcaller", "subprocess.run",
    "operator.attrgetter", "operator.call", "setattr", "delattr", "hasattr", "", None, 3,
    ["getattr"], "torch.from_file", "torch.jit.load", "torch.package.PackageImporter", "pickle.loads",
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_that_are_not_listed_are_refused(trap, function):
    call = node("y", "call_function", function, "touch ran")
    with pytest.raises(CheckpointError):
        run(description(call))
    assert list(trap.iterdir()) == []


GETATTR = [
    [ref("x"), "__class__"],
    [ref("x"), "shape.__class__"],
    [ref("x"), "__dict__"],
    [ref("x"), "shape", 1],
    [ref("x")],
    ["shape"],
    [],
    [ref("x"), {"tuple": ["shape"]}],
    [ref("x"), ref("x")],
    [ref("x"), "T"],
    [ref("x"), "data"],
]


@pytest.mark.parametrize("arguments", GETATTR)
def test_getattr_reads_shapes_only(arguments):
    with pytest.raises(CheckpointError):
        run(description(node("y", "call_function", "getattr", *arguments)))


@pytest.mark.parametrize("keywords", [{"name": "__class__"}, {"default": 1}])
def test_getattr_reads_shapes_only_whatever_its_keywords_say(keywords):
    read = node("y", "call_function", "getattr", ref("x"), "shape") | {"kwargs": keywords}
    assert run(description(read)) == (1, 3, 8, 8)


METHODS = [
    "__class__", "__reduce__", "__reduce_ex__", "numpy", "tolist", "apply_", "register_hook", "backward", "data_ptr",
    "share_memory_", "map_", "storage", "untyped_storage", "format", "add.__class__", "shape.__class__", "", None, 7,
    "add()", f"add({CODE})", "module_load", "__setstate__", "requires_grad_", "set_", "resize_",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_are_not_listed_are_refused(trap, method):
    with pytest.raises(CheckpointError):
        run(description(node("y", "call_method", method, ref("x"))))
    assert list(trap.iterdir()) == []


LAYERS = [
    {"type": "Module", "options": {}},
    {"type": "Sequential", "options": {}},
    {"type": "os.system", "options": {}},
    {"type": "torch.fx.GraphModule", "options": {}},
    {"type": "Conv3d", "options": {"in_channels": 1, "out_channels": 1, "kernel_size": 1}},
    {"type": ["Conv2d"], "options": {}},
    {"type": None, "options": {}},
    {"type": "Conv2d"},
    {"options": {}},
    {},
    None,
    "Conv2d",
    {"type": "Conv2d", "options": {}},
    {"type": "Conv2d", "options": []},
    {"type": "Conv2d", "options": None},
    {"type": "Conv2d", "options": {**CONV["options"], "unknown": 1}},
    {"type": "Conv2d", "options": {**CONV["options"], "self": 1}},
    {"type": "Conv2d", "options": {**CONV["options"], "device": "cpu"}},
    {"type": "Conv2d", "options": {**CONV["options"], "dtype": {"dtype": "torch.float16"}}},
    {"type": "Conv2d", "options": {**CONV["options"], "in_channels": "3"}},
    {"type": "Conv2d", "options": {**CONV["options"], "in_channels": -3}},
    {"type": "Conv2d", "options": {**CONV["options"], "in_channels": 10**30}},
    {"type": "Conv2d", "options": {**CONV["options"], "groups": 0}},
    {"type": "Conv2d", "options": {**CONV["options"], "padding_mode": CODE}},
    {"type": "Conv2d", "options": {**CONV["options"], "stride": {"call": CODE}}},
    {"type": "Conv2d", "options": {**CONV["options"], "stride": {"node": "x"}}},
    {"type": "Hardtanh", "options": {"min_val": 1, "max_val": 0}},
    {"type": "Dropout", "options": {"p": 7}},
    {"type": "SyncBatchNorm", "options": {"num_features": 3, "process_group": "world"}},
]


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_are_not_listed_or_make_no_sense_are_refused(layer):
    with pytest.raises(CheckpointError):
        run(description(CALL, layers={"conv": layer}))


def without(key):
    data = description(CALL)
    del data[key]
    return data


def deep(depth):
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


MALFORMED = [
    None,
    [],
    "network",
    3,
    {},
    without("layers"),
    without("tensors"),
    without("nodes"),
    description(CALL) | {"layers": []},
    description(CALL) | {"layers": "conv"},
    description(CALL) | {"tensors": [1]},
    description(CALL) | {"nodes": None},
    description(CALL) | {"nodes": {}},
    description(CALL) | {"nodes": []},
    description(CALL) | {"nodes": description(CALL)["nodes"][:-1]},
    description(CALL) | {"nodes": [1]},
    description(CALL) | {"nodes": [{}]},
    description({**CALL, "op": "call_code"}),
    description({**CALL, "op": None}),
    description({**CALL, "op": ["call_module"]}),
    description({k: v for k, v in CALL.items() if k != "name"}),
    description({k: v for k, v in CALL.items() if k != "op"}),
    description({k: v for k, v in CALL.items() if k != "target"}),
    description({k: v for k, v in CALL.items() if k != "args"}),
    description({**CALL, "args": [ref("x")]}),
    description({**CALL, "args": "x"}),
    description({**CALL, "args": {"tuple": 3}}),
    description({**CALL, "args": {"tuple": [ref("later")]}}),
    description({**CALL, "args": {"tuple": [ref("y")]}}),
    description({**CALL, "args": {"tuple": [ref(["x"])]}}),
    description({**CALL, "args": {"tuple": [{"call": CODE}]}}),
    description({**CALL, "args": {"tuple": [{"node": "x", "tuple": []}]}}),
    description({**CALL, "args": {"tuple": [{}]}}),
    description({**CALL, "args": {"tuple": [{"dtype": "torch.load"}]}}),
    description({**CALL, "args": {"tuple": [{"float": CODE}]}}),
    description({**CALL, "args": {"tuple": [{"slice": [1, 2, 3, 4]}]}}),
    description({**CALL, "args": {"tuple": [deep(100_000)]}}),
    description({**CALL, "kwargs": []}),
    description({**CALL, "kwargs": "x"}),
    description(CALL, CALL),
    description({**CALL, "target": "missing"}),
    description({**CALL, "op": "get_attr"}),
    description(ADD, tensors={"t": {"shape": [10**30], "parameter": True}}),
    description(ADD, tensors={"t": {"shape": "x", "parameter": True}}),
    description(ADD, tensors={"t": {"shape": [-1], "parameter": True}}),
    description(ADD, tensors={"t": {"parameter": True}}),
    description(ADD, tensors={"t": None}),
    description(node("y", "call_method", "add")),
    description(node("y", "call_method", "add", 3)),
    description(node("y", "call_function", "operator.iadd", 3, 4)),
    description(node("y", "call_function", "operator.iadd", ref("x"))),
    description(node("y", "call_function", "operator.getitem")),
    description(node("y", "placeholder", "x", ref("x"))),
]


@pytest.mark.parametrize("index", range(len(MALFORMED)))
def test_malformed_descriptions_are_refused(trap, index):
    with pytest.raises(CheckpointError, match=r"architecture"):
        architecture.build(MALFORMED[index])
    assert list(trap.iterdir()) == []


def test_strings_stay_strings_in_the_generated_code(trap):
    texts = [
        f"'+{CODE}+'",
        f'"+{CODE}+"',
        f"\n{CODE}\n",
        "\\",
        "'''",
        '"""',
        "{0.__class__}",
        "\ud800",
        "\x00",
        "#",
    ]
    for text in texts:
        data = description(node("y", "call_method", "split", text, "q"))
        assert run(data) == text.split("q")
        keyword = description(node("y", "call_function", "torch.nn.functional.pad", ref("x"), [1, 1], mode=text))
        with pytest.raises((NotImplementedError, RuntimeError)):
            run(keyword)
    assert list(trap.iterdir()) == []


def test_every_name_in_the_lists_is_what_it_says():
    for name, layer in known_layers.LAYERS.items():
        home = importlib.import_module(name.rpartition(".")[0]) if "." in name else nn
        assert layer is getattr(home, name.rpartition(".")[2])
        assert issubclass(layer, nn.Module)
    for name, function in architecture.FUNCTIONS.items():
        assert callable(function)
        assert name == "getattr" or name.startswith(("torch.", "operator.", "torchvision."))
        if name.startswith("torchvision."):
            home, _, last = name.rpartition(".")
            assert function is getattr(importlib.import_module(home), last)


def test_the_module_itself_executes_nothing():
    source = Path(architecture.__file__).read_text()
    assert "eval(" not in source.replace(".eval(", "")
    assert "exec(" not in source


HOSTILE = [None, True, -1, 10**30, 1.5, "", "self", "to_folder", "__class__", CODE, [], {}, ["x"], {"node": "x"}]


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def put(data, path, value):
    *parents, last = path
    for key in parents:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize("network", [Mixed(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_random_damage_is_refused_or_harmless(trap, network):
    original = architecture.describe(network)
    spots = [path for path in places(original) if path]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(600):
        data = copy.deepcopy(original)
        spot = spots[torch.randint(len(spots), (), generator=generator)]
        value = HOSTILE[torch.randint(len(HOSTILE), (), generator=generator)]
        put(data, spot, copy.deepcopy(value))
        if torch.rand((), generator=generator) < 0.2 and isinstance(value, str):  # a renamed layer, called by name
            data = json.loads(
                json.dumps(original).replace('"conv"', json.dumps(value)).replace('"0"', json.dumps(value))
            )
        try:
            assert isinstance(architecture.build(data), nn.Module)
        except CheckpointError:
            refused += 1
    assert refused > 100
    assert list(trap.iterdir()) == []


def test_an_option_of_a_newer_torch_is_read_where_it_says_what_older_ones_do():
    """A file of a newer torch loads in an older one, where an option that is new there changes nothing."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    data = architecture.describe(network)
    data["layers"]["1"]["options"]["bias"] = True  # ReLU has no such option: as if torch had added one
    assert isinstance(architecture.build(data), nn.Module)
    data["layers"]["1"]["options"]["bias"] = False
    with pytest.raises(CheckpointError, match="option of layer 1 'bias' is not one that camify stores"):
        architecture.build(data)
