"""The shape of the packages: who imports whom, what is exported, how long and how documented things are."""

from __future__ import annotations

import ast
import asyncio
import graphlib
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit.programs import ROOT

# From what stands on nothing to what ties all together. A module may import its own folder and the rows above its
# own, for the type checker too; folders in one row do not know each other.
LAYERS = (
    {"_linux", "exceptions", "_logger"},
    {"speedups"},
    {"kernel"},
    {"net", "tls"},
    {"listening"},
    {"proxy"},
    {"connections"},
    {"streams", "datagrams"},
    {"_types", "adapters"},
    {"reports"},
    {"servers"},
    {"arguments", "starting"},
    {"serving"},
    {"monitoring", "leaving"},
    {"program"},
    {"workers"},
    {"running", "live"},
    {"cli", "__init__"},
    {"__main__"},
)
# Underscored names that one folder may use of another although no Protocol class declares them.
FRIENDS = {
    "_app_transport": "asyncio.sslproto.SSLProtocol's: nothing else tells what `loop.start_tls()` returned",
    "_asyncio_future_blocking": "asyncio asks for it by this name",
    **dict.fromkeys(("_unregister_task", "_log_destroy_pending"), "asyncio's own, for tasks that nobody waits for"),
    "_get_running_loop": "asyncio's own, for when no loop runs",
    "_sslobj": "ssl's own: what an SSLSocket passes on to OpenSSL",
    "_exit": "os's, to leave without what Python waits for",
    "_current_frames": "sys's, of threads",
    "_ActionsContainer": "argparse's, for a type",
    "_buffer": "asyncio.StreamReader's: nothing else says how much waits in it",
    "_kept_errors": "background() raises them",
    "_begin": "serve(), or the program around it, lets a server begin",
    "_end_level": "a worker's servers and the monitor's are none of their own in the log",
    "_waiter": "asyncio.StreamReader's: nothing else says whether a task waits for it",
    "_end": "serve() ends the server that it has made; users call close()",
    **dict.fromkeys(("_FlowControlMixin", "_SendfileMode"), "asyncio's own, which `loop.sendfile()` asks for"),
    **dict.fromkeys(
        ("_clear_errors", "_read", "_read_much", "_send", "_share", "_sock", "_unwatch"),
        "a transport's, of its connection",
    ),
    **dict.fromkeys(
        (
            "_begin_drain",
            "_has_timed_out",
            "_close",
            "_close_if_quiet",
            "_expire",
            "_is_in_handshake",
            "_let_go",
            "_silence",
            "_task_name",
            "_undelivered",
            "_vanish",
        ),
        "a server's, of what it handles",
    ),
    **dict.fromkeys(
        ("_bar", "_let_in", "_secure", "_take_proxy_header"),
        "a server's, of a connection that it lets in",
    ),
}

PACKAGES = ["asyncserver", "compat"]
PATHS = {
    package: {
        ".".join(path.relative_to(ROOT / package).with_suffix("").parts): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    for package in PACKAGES
}
PUBLIC = sorted(name for name in PATHS["asyncserver"] if "_" not in {part[0] for part in name.split(".")})


class Imports(ast.NodeVisitor):
    """Collects what a module imports: when it runs, when it is loaded, and for the type checker, too."""

    def __init__(self, package: Sequence[str]) -> None:
        self.package = package
        self.found: set[str] = set()
        self.on_loading: set[str] = set()
        self.with_types: set[str] = set()
        self._depth = 0
        self._for_types = False

    def _add(self, name: str) -> None:
        self.with_types.add(name)
        if self._for_types:
            return
        self.found.add(name)
        if not self._depth:
            self.on_loading.add(name)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            self._for_types = True
            for child in node.body:
                self.visit(child)
            self._for_types = False
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815 - as ast has it

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        start = [*self.package[: len(self.package) - node.level + 1]] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        if module.partition(".")[0] not in PACKAGES:
            self._add(module)
            return
        for alias in node.names:  # a module of a folder, or a name in a module
            self._add(f"{module}.{alias.name}" if _is_module(f"{module}.{alias.name}") else module)


def _is_module(name: str) -> bool:
    package, _, rest = name.partition(".")
    return rest in PATHS[package] or f"{rest}.__init__" in PATHS[package]


def imports_of(path: Path) -> Imports:
    imports = Imports(path.relative_to(ROOT).parts[:-1])
    imports.visit(ast.parse(path.read_text()))
    return imports


def inside(package: str, names: set[str]) -> set[str]:
    """The modules of a package among them, without the package's name."""
    return {name.partition(".")[2] for name in names if name.startswith(f"{package}.")}


def layer_of(name: str) -> int:
    """The row of a module or of its folder."""
    (row,) = (number for number, row in enumerate(LAYERS) if name.partition(".")[0] in row)
    return row


@pytest.mark.parametrize("name", sorted(PATHS["asyncserver"]))
def test_imports_go_in_one_direction_only(name: str) -> None:
    """A module imports its own folder and the layers below it, for the type checker too."""
    folder = name.partition(".")[0]
    for other in inside("asyncserver", imports_of(PATHS["asyncserver"][name]).with_types):
        beside = other.partition(".")[0] == folder and "." in name
        assert beside or layer_of(other) < layer_of(name), f"{name} must not import {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_no_circle(package: str) -> None:
    """Some module can always come next, also when what is imported for the type checker counts."""
    graph = {name: inside(package, imports_of(path).with_types) - {name} for name, path in PATHS[package].items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def _underscored(tree: ast.AST) -> set[str]:
    """The attributes with an underscore that a module's classes define, and its private functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign) and "__slots__" in map(ast.unparse, node.targets):
            found |= {str(one.value) for one in ast.walk(node.value) if isinstance(one, ast.Constant)}
    return found


def _interfaces(tree: ast.AST) -> set[str]:
    """What a module's Protocol classes declare."""
    protocols = [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    return set().union(*map(_underscored, protocols))


def test_private_names_stay_in_their_folder() -> None:
    """Friends live in one folder; what crosses folders is public, or declared by a Protocol class."""
    trees = {name: ast.parse(path.read_text()) for name, path in PATHS["asyncserver"].items()}
    declared = set(FRIENDS).union(*map(_interfaces, trees.values()))
    at_home: dict[str, set[str]] = {}
    for name, tree in trees.items():
        at_home.setdefault(name.rpartition(".")[0], set()).update(_underscored(tree))
    reached = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in {"self", "cls"}
        and node.attr not in at_home[name.rpartition(".")[0]] | declared
    ]
    assert not reached


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_shows_every_module(package: str) -> None:
    """CONTRIBUTING's map names each module under its folder, and nothing that is not there."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    lines = iter(text[text.index(f"    {package}/\n") :].splitlines()[1:])
    shown, folder = set(), ""
    for line in itertools.takewhile(lambda line: line.startswith("      "), lines):
        names, _, said = line.strip().partition("  ")
        if line[6] != " ":
            folder = names.removesuffix("/") + "." if "/" in names else ""
        shown |= {folder + name for name in names.split(", ") if "/" not in name}
        for name in re.findall(r"[a-z_]+", said.partition(":")[0]) if names.endswith("/") else ():
            shown |= {folder + name} & set(PATHS[package])
    real = {name for name in PATHS[package] if "__" not in name}
    assert real - shown == set(), "not on the map"
    assert shown - real == set(), "on the map only"


@pytest.mark.parametrize("folder", sorted({path.parent for paths in PATHS.values() for path in paths.values()}))
def test_folder_is_small(folder: Path) -> None:
    """A folder can be read in a sitting."""
    lines = sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))
    assert lines <= 1500, f"{folder.name} has {lines} lines"


def test_package_imports_public_modules_only() -> None:
    """`__init__` re-exports; its private exceptions are where the types live, and what says where we cannot run."""
    imported = inside("asyncserver", imports_of(ROOT / "asyncserver/__init__.py").found)
    assert imported <= set(PUBLIC) | {"_types", "_linux"}


def test_asyncserver_does_not_import_compat_when_loaded() -> None:
    """asyncserver stands alone; only the command line may reach for compat, and only when asked to."""
    for name, path in PATHS["asyncserver"].items():
        imports = imports_of(path)
        assert not {name for name in imports.on_loading if name.split(".")[0] == "compat"}, path
        if name != "cli.loading":  # for the command line
            assert not {name for name in imports.found if name.split(".")[0] == "compat"}, path


def test_compat_imports_public_names_of_asyncserver_only() -> None:
    """The synchronous face uses what everybody can use."""
    exported = set(importlib.import_module("asyncserver").__all__)
    for path in PATHS["compat"].values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).startswith("asyncserver"):
                assert node.module == "asyncserver", path
                assert {alias.name for alias in node.names} <= exported, path


def test_only_loops_imports_uvloop() -> None:
    """The loop is the program's choice; no other module may depend on which it is."""
    importing = {name for name, path in PATHS["asyncserver"].items() if "uvloop" in imports_of(path).found}
    assert importing == {"program.loops"}


ELSEWHERE = {"compat", "uvloop", "socketserver", "pathlib", "asyncserver.running", "asyncserver.monitoring"}
STREAMS = {"asyncserver.streams", "asyncserver.connections"}


@pytest.mark.parametrize(
    ("call", "heavy"),
    [
        ("import asyncserver", {"anyio", "asyncserver.datagrams", "asyncserver.servers.server", *STREAMS}),
        ("asyncserver.serve(handler, port=0).close()", {"asyncserver.datagrams", "asyncserver.adapters.transports"}),
        ("asyncserver.serve_datagrams(handler, port=0).close()", {*STREAMS, "asyncserver.adapters.transports"}),
    ],
)
def test_import_is_light(call: str, heavy: set[str]) -> None:
    """Importing asyncserver brings in nothing that few programs need, and serve() its own kind of server."""
    # asyncio first: from 3.15 on it has pathlib.
    script = "import sys, asyncio; had = set(sys.modules); import asyncserver\nasync def handler(source): ...\n"
    script += f"{call}; print(*sorted({heavy | ELSEWHERE} & (set(sys.modules) - had)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["asyncserver", *(f"asyncserver.{name}" for name in PUBLIC)])
def test_all_is_sorted_and_names_exist(name: str) -> None:
    """`__all__`, where a module has one, is sorted, without doubles, and true."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert list(exported) == sorted(set(exported))
    assert [one for one in exported if not hasattr(module, one)] == []


def test_package_exports_what_its_modules_export() -> None:
    """Every public name of a public module is found in the package, and nothing else."""
    package = importlib.import_module("asyncserver")
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "asyncserver/__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported |= {alias.name for alias in node.names}
    assert set(package.__all__) == imported - {"_linux"}
    offered: set[str] = set()
    for name in (*PUBLIC, "_types"):
        offered |= set(getattr(importlib.import_module(f"asyncserver.{name}"), "__all__", []))
    assert offered - set(package.__all__) == set()


def public_callables() -> list[Any]:
    """Everything that is exported, can be called and is our own, and the public methods of exported classes."""
    found = []
    package = importlib.import_module("asyncserver")
    for name in package.__all__:
        thing = getattr(package, name)
        if not callable(thing) or not str(getattr(thing, "__module__", "")).startswith("asyncserver"):
            continue
        found.append(pytest.param(thing, id=name))
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                function = value.fget if isinstance(value, property) else value
                if not method.startswith("_") and inspect.isfunction(function):
                    found.append(pytest.param(function, id=f"{name}.{method}"))
    return found


@pytest.mark.parametrize("thing", public_callables())
def test_public_callable_is_documented(thing: Any) -> None:
    """Whatever a user can call says what it does, and speaks of each of its parameters."""
    text = inspect.getdoc(thing) or ""
    assert text.strip(), f"{thing!r} has no docstring"
    if not inspect.isfunction(thing) or "Args:" not in text:
        return
    for name in inspect.signature(thing).parameters:
        assert name == "self" or f"{name}: " in text or f"{name}, " in text, f"{thing!r} does not tell of {name}"


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_module_is_documented_and_of_readable_length(package: str) -> None:
    """Every module says in its first lines what it holds, and none is longer than 400 lines."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.parent.name == "programs":  # other people's
            continue
        source = path.read_text()
        assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"
        assert len(source.splitlines()) <= 400, f"{path} is too long"


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package: str) -> None:
    """None has more than 50 lines, its arguments and docstring aside."""
    for name, path in PATHS[package].items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1 if ast.get_docstring(node) is not None else 0 :]
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                assert lines <= 50, f"{name}.{node.name} has {lines} lines"


def test_no_module_has_the_name_of_a_public_function() -> None:
    """`serve.py` beside `serve` would make `import asyncserver.serve` lie."""
    package = importlib.import_module("asyncserver")
    functions = {name for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    assert not functions & {part for name in PATHS["asyncserver"] for part in name.split(".")}


async def test_tests_run_in_debug_mode() -> None:
    """asyncio's debug mode finds what is called in the wrong thread and is never awaited."""
    assert asyncio.get_running_loop().get_debug()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    """Type checkers look for the marker."""
    assert (ROOT / package / "py.typed").is_file()
