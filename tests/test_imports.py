"""Who imports whom: no circle among modules, rooms in layers, and a light `from provscale import GuidedStep`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

Graph = dict[str, set[str]]

# Rooms (folders of the package) that stand on their own, from the derivatives up to what a data set needs.
ROOMS = {"second_derivatives", "guidance", "models", "synthesis", "data"}


def module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, names: Iterable[str]) -> set[str]:
    """Modules among `names` that a module imports, anywhere in it: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            # `from package import name` is the module package.name, or a name in package.
            whole = {f"{node.module}.{alias.name}": str(node.module) for alias in node.names}
            found |= {module if module in names else package for module, package in whole.items()}
    return found & set(names)


def module_graph(folder: Path, package: str) -> Graph:
    """What each module of a package imports. Importing a.b.c runs a and a.b first, unless the importer is in them."""
    sources = {module_name(path, folder): path.read_text() for path in (folder / package).rglob("*.py")}
    graph: Graph = {}
    for name, source in sources.items():
        reached = set()
        for module in imported(source, sources.keys()):
            parts = module.split(".")
            parents = {".".join(parts[:length]) for length in range(1, len(parts))} & sources.keys()
            reached |= {module} | {parent for parent in parents if not f"{name}.".startswith(f"{parent}.")}
        graph[name] = reached - {name}
    return graph


def room_graph(modules: Graph, rooms: set[str]) -> Graph:
    """What each of `rooms` imports of the others."""
    graph: Graph = {room: set() for room in rooms}
    for module, reached in modules.items():
        for other in reached:
            first, second = ((*name.split("."), "")[1] for name in (module, other))
            if first in rooms and second in rooms - {first}:
                graph[first].add(second)
    return graph


def circle(graph: Graph) -> list[str]:
    """One circle of a graph, its first member again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_circles_are_found(tmp_path: Path) -> None:
    """Planted ones: in a function, for type checkers, and through a package's __init__."""
    sources = {
        "p/__init__.py": "", "p/a.py": "import p.b", "p/b.py": "def f():\n    from p import a",
        "p/q/__init__.py": "from p.q import x", "p/q/x.py": "from p.r.y import Y", "p/q/z.py": "",
        "p/r/__init__.py": "", "p/r/y.py": "import typing\nif typing.TYPE_CHECKING:\n    from p.q.z import Z",
    }  # fmt: skip
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    graph = module_graph(tmp_path, "p")
    assert graph == {
        "p": set(), "p.a": {"p.b"}, "p.b": {"p.a"}, "p.q": {"p.q.x"}, "p.q.x": {"p.r", "p.r.y"}, "p.q.z": set(),
        "p.r": set(), "p.r.y": {"p.q", "p.q.z"},
    }  # fmt: skip
    assert set(circle({name: reached for name, reached in graph.items() if name in ("p.a", "p.b")})) == {"p.a", "p.b"}
    assert set(circle({name: reached for name, reached in graph.items() if name[:3] not in ("p.a", "p.b")})) == {
        "p.q", "p.q.x", "p.r.y",
    }  # fmt: skip
    assert room_graph(graph, {"q", "r", "a"}) == {"q": {"r"}, "r": {"q"}, "a": set()}
    assert circle({"p": {"q"}, "q": set()}) == []


@pytest.fixture(scope="module")
def modules() -> Graph:
    # The package's own names are imported when they are first used (`provscale.__getattr__`), after it is there.
    return {**module_graph(ROOT, "provscale"), "provscale": set()}


def test_no_module_imports_itself_by_way_of_others(modules: Graph) -> None:
    assert len(modules) > 80
    assert circle(modules) == []


def test_rooms_lie_in_layers(modules: Graph) -> None:
    """Guidance and networks do not know each other, and no data set knows either."""
    graph = room_graph(modules, ROOMS)
    assert circle(graph) == []
    assert graph["second_derivatives"] == set()
    assert graph["guidance"] == {"second_derivatives"}
    assert not graph["data"] & {"guidance", "models"}


def test_guidance_alone_loads_no_data_and_no_tools() -> None:
    """For a loop of one's own: PyTorch, and what the step needs."""
    code = "import json, sys; from provscale import GuidedStep; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    loaded = json.loads(printed)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("provscale.")}
    assert "guidance" in rooms
    assert not rooms & {"data", "engine", "evaluation", "models", "run", "synthesis", "tracking", "trainer", "config"}
    heavy = {"scipy", "timm", "torchvision", "cv2", "datasets", "matplotlib", "accelerate", "wandb", "jsonargparse"}
    assert not heavy & {name.split(".")[0] for name in loaded}
    assert not {"torch._dynamo", "torch._inductor"} & set(loaded)  # the compiler, twice as much as all else together
