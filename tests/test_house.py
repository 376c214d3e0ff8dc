"""The plan of the house: what may import what, and what nobody may call. Read from the sources, nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "camify"

# ``__main__`` is the door of the command.
FLOORS = {
    "errors": 0, "console": 0, "files": 0, "maps": 0, "normalizers": 0, "pooling": 0, "eval_mode": 0, "boxes": 0,
    "image_files": 0, "preprocessing": 0, "task": 0, "batch": 0, "former_names": 0, "logits": 0, "progress": 0,
    "ranks": 0, "public_names": 0, "memory": 0,
    "graphs": 1, "box_features": 2, "checkpoint": 2, "model": 3,
    "metrics": 4, "data": 4, "drawing": 4,
    "exporters": 5, "reports": 5, "sources": 6,
    "methods": 7, "conversion": 7, "web": 7,
    "evaluation": 8, "app": 9, "training": 9, "cli": 10, "__main__": 11,
}  # fmt: skip
GROUND = {  # floor 0 stands on itself only where it must
    "files": {"errors"},
    "maps": {"errors"},
    "normalizers": {"errors", "maps"},
    "boxes": {"errors", "maps", "normalizers"},
    "image_files": {"errors"},
    "progress": {"console"},
    "preprocessing": {"console", "errors", "image_files"},
    "batch": {"errors"},
    "task": {"errors"},
    "logits": {"errors"},
    "ranks": {"errors"},
}
LIGHTNING = ("training", "data", "cli", "__main__")


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The part of the house that a module belongs to: ``camify.graphs.layouts`` -> ``graphs``."""
    return module.split(".")[1] if "." in module else ""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, wherever in the file."""
    module = module_of(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if is_module(full) else source


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("camify") and (path.is_dir() or path.with_suffix(".py").is_file())


HOUSE = [path for path in sources() if path != PACKAGE / "__init__.py"]


def test_every_room_has_a_floor():
    rooms = {room_of(module_of(path)) for path in HOUSE}
    assert rooms <= FLOORS.keys()


@pytest.mark.parametrize("path", HOUSE, ids=lambda path: module_of(path))
def test_imports_point_downwards(path):
    room = room_of(module_of(path))
    for name in imports(path):
        if not name.startswith("camify"):
            continue
        target = room_of(name)
        assert target, f"{module_of(path)} imports the package itself: import the module that has the name"
        if target == room:
            continue
        if FLOORS[room] == 0:
            assert target in GROUND.get(room, ()), f"{room} must stand by itself, but imports {target}"
        else:
            assert FLOORS[target] < FLOORS[room], f"{room} imports {target}, which is not below it"


@pytest.mark.parametrize("path", [*sources(), ROOT / "train.py"], ids=lambda path: path.name)
def test_lightning_stays_upstairs(path):
    if not path.is_file():
        pytest.skip(f"{path.name} does not exist")
    room = room_of(module_of(path))
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in ("lightning", "lightning_fabric"), "the package is pytorch_lightning"
        if top == "pytorch_lightning":
            assert room in LIGHTNING or path.name == "train.py", f"{module_of(path)} knows Lightning"


PRIVATE = {  # words of a story, not of the field: no module, function, class, argument or option is called so
    "anatomy", "asking", "contender", "contenders", "course", "dissect", "finds", "findings", "found", "looks", "pace",
    "probes", "screens", "subjects", "surgery",
}  # fmt: skip
BRITISH = ("licence", "colour", "normaliser", "localis", "optimis", "initialis", "labelled", "behaviour", "neighbour")
OLD = {"num_finds"}  # old spellings that are still read


def names_in(path: Path) -> Iterator[str]:
    """Names that a file defines: its own, of classes, functions, arguments and variables."""
    yield path.stem
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", HOUSE, ids=lambda path: module_of(path))
def test_names_are_terms_of_the_field_in_us_spelling(path):
    for name in set(names_in(path)) - OLD:
        words = set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))
        assert not words & PRIVATE, f"{path}: {name}"
        assert not any(word in name.lower() for word in BRITISH), f"{path}: {name}"


def test_every_package_says_what_stands_there():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(tree_of(path)), path


def test_no_import_goes_round_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in HOUSE:
        package_of_file = module_of(path)
        graph[package_of_file] = {
            name for name in imports(path) if name.startswith("camify.") and name != package_of_file
        }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


CALLS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def name_of(node: ast.expr) -> str:
    """``torch.load`` of the expression that says so."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Every call that could run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        last = name.rpartition(".")[2] or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
        if name in CALLS or last in ("extractall", "unsafe_load", "full_load", "load_from_checkpoint"):
            yield name or last
        if name in ("yaml.load", "os.system", "os.popen", "torch.jit.load", "torch.hub.load", "torch.export.load"):
            yield name
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            yield "torch.load without weights_only=True"
        if keyword(node, "shell") is True or keyword(node, "allow_pickle") is True:
            yield f"{name} with a shell or a pickle"


@pytest.mark.parametrize("path", [*sources(), ROOT / "train.py"], ids=lambda path: path.name)
def test_no_camify_file_runs_what_a_file_says(path):
    if not path.is_file():
        pytest.skip(f"{path.name} does not exist")
    assert list(unsafe(tree_of(path))) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import loads", "eval('1')", "exec('1')", "yaml.load(f)", "torch.load(f)",
     "torch.load(f, weights_only=False)", "subprocess.run('ls', shell=True)", "tar.extractall(p)",
     "open(p).extractall()", "np.load(p, allow_pickle=True)", "torch.load(f, weights_only=flag)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code):
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["model.eval()", "torch.load(f, weights_only=True)", "yaml.safe_load(f)", "np.load(p)", "re.compile('a')"]
)
def test_the_search_finds_nothing_else(code):
    assert not list(unsafe(ast.parse(code)))


def test_the_import_reader_reads_relative_imports():
    found = set(imports(PACKAGE / "conversion" / "pipeline.py"))
    assert {"camify.errors", "camify.model", "camify.graphs", "torch"} <= found
    assert "camify.conversion" not in found


def code_constants(text: str) -> list[str]:
    """Modules with a string that is just this text."""
    return [
        module_of(path)
        for path in sources()
        if any(isinstance(node, ast.Constant) and node.value == text for node in ast.walk(tree_of(path)))
    ]


def test_the_file_of_boxes_is_spelt_once():
    assert code_constants("boxes.csv") == ["camify.data.boxes_csv"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "evaluation").glob("*.py")), ids=lambda path: path.name)
def test_evaluation_makes_no_probabilities_itself(path):
    calls = {name_of(node.func).rpartition(".")[2] for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    assert not calls & {"softmax", "sigmoid", "log_softmax"}, "ask camify.task"


IMAGE_READERS = {
    "Image.open", "cv2.imread", "cv2.imdecode", "cv2.VideoCapture", "plt.imread", "image.imread", "imageio.imread",
    "io.read_image", "io.decode_image", "io.decode_jpeg", "io.decode_png", "default_loader", "folder.default_loader",
}  # fmt: skip


def test_image_files_are_opened_in_one_place():
    readers = [
        (module_of(path), name_of(node.func))
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and name_of(node.func).endswith(tuple(IMAGE_READERS))
    ]
    assert readers == [("camify.image_files", "Image.open")]


def test_everything_that_is_shown_goes_through_one_console():
    for path in sources():
        if module_of(path) == "camify.console":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                name = name_of(node.func)
                assert name not in ("print", "Console", "warnings.warn"), f"{path}:{node.lineno}: {name}"
            assert not isinstance(node, ast.Attribute) or name_of(node) not in (
                "sys.stdout", "sys.stderr", "rich.console", "rich.print",
            ), f"{path}:{node.lineno}: ask camify.console"  # fmt: skip
        assert "rich.console" not in set(imports(path)), path
