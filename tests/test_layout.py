"""The shape of the packages: who imports whom, what is exported, how long and how documented things are."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

# What each module may import of its own package when it is loaded; imports for the type checker do not count.
_BELOW_SERVER = {"_tasks", "addresses", "binding", "exceptions", "_logger", "logs", "reports"}
_STREAMS = {
    "_attributes", "_connection", "_dialogue", "_kernel", "_openssl", "_poller", "_states", "_tls_connection",
    "_waiter", "addresses", "exceptions", "proxy_protocol",
}  # fmt: skip
_SERVERS = _BELOW_SERVER | _STREAMS | {
    "_transports", "adapters", "datagram", "listener", "server", "stream", "tls",
}  # fmt: skip
ASYNCSERVER: dict[str, set[str]] = {
    "addresses": set(),
    "exceptions": set(),
    "_types": set(),
    "_logger": set(),
    "_tasks": set(),
    "_handlers": set(),
    "_kernel": set(),
    "_openssl": set(),
    "_terminals": set(),
    "_stopping": {"_logger"},
    "_waiter": {"exceptions"},
    "reports": {"_logger", "exceptions"},
    "_certificate": set(),
    "tls": {"_certificate"},
    "systemd": {"_logger", "exceptions"},
    "_socket_file": {"exceptions"},
    "binding": {"_socket_file", "addresses", "exceptions", "systemd"},
    "logs": {"_logger", "addresses", "reports"},
    "listener": {"_logger", "addresses"},
    "proxy_protocol": {"addresses", "exceptions"},
    "_poller": set(),
    "_dialogue": set(),
    "_states": set(),
    "_connection": {"_dialogue", "_kernel", "_poller", "_states", "_waiter", "exceptions", "proxy_protocol"},
    "_attributes": {"tls"},
    "_tls_connection": {"_connection", "_openssl", "_states"},
    "stream": _STREAMS,
    "datagram": {"_logger", "addresses"},
    "_batch_reader": {"_logger", "addresses", "datagram"},
    "_inline_runner": {"_batch_reader", "_tasks", "_waiter"},
    "_protocol_endpoint": {"_batch_reader", "_logger"},
    "_transports": set(),
    "adapters": {
        "_connection",
        "_dialogue",
        "_handlers",
        "_kernel",
        "_tasks",
        "_transports",
        "addresses",
        "exceptions",
    },
    "server": _BELOW_SERVER,
    "stream_server": _SERVERS,
    "datagram_server": {"_inline_runner", "_logger", "_protocol_endpoint", "adapters", "logs", "server"},
    "serving": _SERVERS | {"_handlers", "stream_server", "datagram_server"},
    "live": set(),
    "metrics": {"_logger", "reports"},
    "_http": set(),
    "_monitor": {"_http", "_logger", "addresses", "metrics", "serving"},
    "_exchanges": {"_http", "_monitor", "_slot"},
    "_drops": {"datagram"},
    "_tally": {"_drops", "_monitor", "_slot", "_worker", "addresses", "metrics", "reports"},
    "_worker": {"_logger"},
    "_slot": {"_worker"},
    "_watchdog": {"_logger", "_slot"},
    "workers": {
        "_stopping",
        "_terminals",
        "_exchanges",
        "_logger",
        "_monitor",
        "_slot",
        "_tally",
        "_watchdog",
        "_worker",
    },
    "running": {
        "_logger",
        "_monitor",
        "_stopping",
        "_terminals",
        "logs",
        "serving",
        "systemd",
        "workers",
    },
    "options": {"addresses"},
    "loading": {"adapters", "serving"},
}
TIES_ALL_TOGETHER = {"__init__", "__main__", "cli"}

MODULES = sorted(path.stem for path in (ROOT / "asyncserver").glob("*.py"))
PUBLIC = sorted(set(MODULES) - {name for name in MODULES if name.startswith("_")})
PACKAGES = ["asyncserver", "compat"]


class Imports(ast.NodeVisitor):
    """Collects what a module imports: when it runs, when it is loaded, and for the type checker, too."""

    def __init__(self, package: str) -> None:
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
        assert node.level <= 1, "the packages are flat"
        if node.level == 0:
            self._add(str(node.module))
        elif node.module is None:
            for alias in node.names:
                self._add(f"{self.package}.{alias.name}")
        else:
            self._add(f"{self.package}.{node.module}")


def imports_of(path: Path) -> Imports:
    imports = Imports(path.parent.name)
    imports.visit(ast.parse(path.read_text()))
    return imports


def inside(package: str, names: set[str]) -> set[str]:
    """The modules of a package among them, without the package's name."""
    return {name.partition(".")[2] for name in names if name.startswith(f"{package}.")}


@pytest.mark.parametrize("name", sorted(set(MODULES) - TIES_ALL_TOGETHER))
def test_imports_go_in_one_direction_only(name: str) -> None:
    """A module imports only what the table above lets it; a new module has to be given its place there."""
    assert name in ASYNCSERVER, f"give asyncserver/{name}.py its place in the table of this test"
    imported = inside("asyncserver", imports_of(ROOT / f"asyncserver/{name}.py").found)
    assert imported <= ASYNCSERVER[name], f"{name} must not import {imported - ASYNCSERVER[name]}"


def test_the_table_has_no_circle() -> None:
    """What the table allows is itself an order: some module can always come next."""
    assert set(ASYNCSERVER) | TIES_ALL_TOGETHER == set(MODULES)
    placed: set[str] = set()
    while placed != set(ASYNCSERVER):
        ready = {name for name, allowed in ASYNCSERVER.items() if allowed <= placed} - placed
        assert ready, f"a circle among {sorted(set(ASYNCSERVER) - placed)}"
        placed |= ready


# Modules that still know each other's types.
_PAIRS = [{"_transports", "adapters"}, {"_receiver", "datagram_server"}]


def test_imports_for_types_have_no_circle_either() -> None:
    """What a module knows for the type checker only stands below it, too."""
    known = {name: inside("asyncserver", imports_of(ROOT / f"asyncserver/{name}.py").with_types) for name in MODULES}
    graph = {name: {one for one in known[name] & set(MODULES) if {name, one} not in _PAIRS} for name in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_package_imports_public_modules_only() -> None:
    """`__init__` re-exports; its private exception is where the types live."""
    imported = inside("asyncserver", imports_of(ROOT / "asyncserver/__init__.py").found)
    assert imported <= set(PUBLIC) | {"_types"}


def test_asyncserver_does_not_import_compat_when_loaded() -> None:
    """asyncserver stands alone; only the command line may reach for compat, and only when asked to."""
    for path in (ROOT / "asyncserver").glob("*.py"):
        imports = imports_of(path)
        assert not {name for name in imports.on_loading if name.split(".")[0] == "compat"}, path
        if path.stem != "loading":  # for the command line
            assert not {name for name in imports.found if name.split(".")[0] == "compat"}, path


def test_compat_imports_public_names_of_asyncserver_only() -> None:
    """The synchronous face uses what everybody can use."""
    exported = set(importlib.import_module("asyncserver").__all__)
    for path in (ROOT / "compat").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).startswith("asyncserver"):
                private = {alias.name for alias in node.names} - exported
                assert not private or node.module != "asyncserver", f"{path} imports {private}"
                assert not any(part.startswith("_") for part in str(node.module).split(".")), path


def test_only_running_imports_uvloop() -> None:
    """The loop is the program's choice; no other module may depend on which it is."""
    importing = {path.stem for path in (ROOT / "asyncserver").glob("*.py") if "uvloop" in imports_of(path).found}
    assert importing == {"running"}


def test_import_is_light() -> None:
    """Importing asyncserver brings in neither compat nor uvloop nor the interpreter's socketserver."""
    script = "import sys, asyncserver; print(*sorted({'compat', 'uvloop', 'socketserver'} & set(sys.modules)))"
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
    for node in ast.parse((ROOT / "asyncserver/__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported |= {alias.name for alias in node.names}
    assert set(package.__all__) == imported
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
    for path in sorted((ROOT / package).glob("*.py")):
        source = path.read_text()
        assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"
        assert len(source.splitlines()) <= 400, f"{path} is too long"


def test_no_module_has_the_name_of_a_public_function() -> None:
    """`serve.py` beside `serve` would make `import asyncserver.serve` lie."""
    package = importlib.import_module("asyncserver")
    functions = {name for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    assert not functions & set(MODULES)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    """Type checkers look for the marker."""
    assert (ROOT / package / "py.typed").is_file()
