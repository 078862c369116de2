"""Run an unchanged program as `__main__`, with `compat` in the place of `socketserver`.

The program gets our own `__main__` module, emptied, not one of runpy's, which would be removed
while threads of the program still pickle things. All it can see of us is `sys.orig_argv`, and a
`__main__.__spec__` that sends the children of multiprocessing's spawn and forkserver through
`compat.child`, so that they are swapped as well.
"""

import argparse
import builtins
import importlib.util
import io
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import compat
from compat.patching import install
from compat.program.draining import Drain

PROGRAM = "COMPAT_PROGRAM"  # what children execute: "script PATH", "module NAME", "archive"
GRACEFUL_TIMEOUT = 5.0  # less than supervisors wait to kill: Docker 10 s, Kubernetes 30 s


class _Spec(ModuleSpec):
    """The spec of `compat.child`, except that relative imports see the program's own package.

    multiprocessing reads the name just before it starts a child: what the child has to know is put
    into the environment then, as the program may have cleared it before.
    """

    def __init__(self, loader: Any, parent: str, program: str) -> None:
        self._parent = parent
        self._program = program
        super().__init__("compat.child", loader)

    @property
    def name(self) -> str:
        os.environ[PROGRAM] = self._program
        return "compat.child"

    @name.setter
    def name(self, _: str) -> None:
        """Let ModuleSpec's constructor set it."""

    @property
    def parent(self) -> str:
        return self._parent


def main() -> None:
    """Run the program that the command line names."""
    options = _parse(sys.argv[1:])
    try:
        install()
    except RuntimeError as error:
        sys.exit(f"python -m compat: {error}")
    _stay_importable()
    sys.excepthook = _excepthook
    drain = Drain(options.graceful_timeout)
    try:
        if options.module:
            _run_module(options.program, options.arguments)
        else:
            _run_script(options.program, options.arguments)
    finally:
        drain.finish()


def execute_in_child(namespace: dict[str, Any]) -> None:
    """In a child of multiprocessing: define what the program's main module defines, swapped, too.

    `namespace` holds the globals of the module that multiprocessing will call `__main__`.
    """
    install()
    kind, _, name = os.environ[PROGRAM].partition(" ")
    if kind == "module":
        spec = _find(name)
        if not spec.name.endswith(".__main__"):  # multiprocessing does not execute those either
            _execute(_code_of(spec), spec, spec.parent, namespace, "__mp_main__")
    elif kind == "script":
        _execute(_compile(name), ModuleSpec("__main__", None, origin=name), "", namespace, "__mp_main__")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m compat",
        description="Run an unchanged program with compat in the place of socketserver.",
        usage="python -m compat [-h] [--graceful-timeout SECONDS] (script.py | -m module) [arguments ...]",
    )
    parser.add_argument(
        "--graceful-timeout",
        type=float,
        default=GRACEFUL_TIMEOUT,
        metavar="SECONDS",
        help="after SIGTERM, how long handlers may go on before their sockets are shut down, unless their"
        " server class says otherwise (default: %(default)s)",
    )
    own, program = _split(arguments)
    options = parser.parse_args(own)
    options.module = program[:1] == ["-m"]
    program = program[options.module :]
    if not program:
        parser.error("expected the path of a script, or -m and the name of a module")
    options.program, *options.arguments = program
    return options


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split into our options and the program with its own: argparse would not stop there."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-") and arguments[position] != "-m":
        position += 2 if arguments[position] == "--graceful-timeout" else 1
    return arguments[:position], arguments[position:]


def _stay_importable() -> None:
    """Let children find this package if it came from the current folder, which we leave."""
    folder = Path(compat.__file__).absolute().parent.parent
    if folder not in (Path(entry).absolute() for entry in sys.path[1:]):
        sys.path.append(str(folder))


# What Python does for `python script.py` and `python -m module`.


def _run_script(path: str, arguments: list[str]) -> None:
    full = str(Path(path).absolute())
    spec = PathFinder.find_spec("__main__", [full])
    if spec is not None:
        _run_archive(spec, path, full, arguments)
        return
    try:
        code = _compile(full)
    except OSError as error:
        sys.stderr.write(f"python -m compat: can't open file {full!r}: [Errno {error.errno}] {error.strerror}\n")
        sys.exit(2)
    folder = Path(full).resolve().parent
    if not sys.flags.safe_path:
        sys.path[0] = str(folder)
    _warn_of_namesake(folder)
    sys.argv = [path, *arguments]
    os.environ[PROGRAM] = f"script {full}"
    _execute(code, ModuleSpec("__main__", SourceFileLoader("__main__", full), origin=full), None)


def _run_archive(spec: ModuleSpec, path: str, full: str, arguments: list[str]) -> None:
    """A directory or zip file with a `__main__.py`, from which it imports."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder
    sys.path.insert(0, full)
    sys.argv = [path, *arguments]
    os.environ[PROGRAM] = "archive"  # multiprocessing does not execute it in children either
    _execute(_code_of(spec), spec, "")


def _run_module(name: str, arguments: list[str]) -> None:
    spec = _find(name)
    sys.argv = [spec.origin or name, *arguments]
    os.environ[PROGRAM] = f"module {name}"
    _execute(_code_of(spec), spec, spec.parent)


def _compile(path: str) -> CodeType:
    with io.open_code(path) as source:
        code: CodeType = compile(source.read(), path, "exec", dont_inherit=True)
    return code


def _find(name: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:
        sys.exit(f"python -m compat: error while finding module {name!r} ({type(error).__name__}: {error})")
    if spec is None:
        sys.exit(f"python -m compat: no module named {name!r} that can be executed")
    return spec


def _code_of(spec: ModuleSpec) -> CodeType:
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if not isinstance(code, CodeType):
        sys.exit(f"python -m compat: {spec.name} has no code that can be executed")
    return code


def _execute(
    code: CodeType,
    spec: ModuleSpec,
    package: str | None,
    namespace: dict[str, Any] | None = None,
    name: str = "__main__",
) -> None:
    """Run a program in a namespace that holds what this version of Python would put there."""
    if namespace is None:
        namespace = vars(sys.modules["__main__"])
    namespace.clear()
    namespace.update(
        __name__=name,
        __doc__=None,
        __package__=package,
        __loader__=spec.loader,
        # With the same loader: Python 3.15 warns if they differ.
        __spec__=_Spec(spec.loader, package or "", os.environ[PROGRAM]),
        __file__=spec.origin,
    )
    if sys.version_info < (3, 15):
        namespace["__cached__"] = spec.cached
    if name == "__main__":
        namespace["__builtins__"] = builtins  # otherwise exec() adds them, as a dict
        if sys.version_info < (3, 14):  # later it would hide those of the program's code (PEP 649)
            namespace["__annotations__"] = {}
    exec(code, namespace)  # noqa: S102  # it is what the user asked for


def _warn_of_namesake(folder: Path) -> None:
    for namesake in (folder / "compat.py", folder / "compat" / "__init__.py"):
        if namesake.exists() and namesake.parent != Path(__file__).resolve().parent:
            sys.stderr.write(
                f"python -m compat: warning: `import compat` will not give the program {namesake},"
                " but the package that replaces socketserver. Rename that file, or put it into a package\n"
            )


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an uncaught exception as if the program had been started without us."""
    inner = trace
    while inner is not None and inner.tb_frame.f_code.co_filename in _OUR_FILES:
        inner = inner.tb_next
    if not isinstance(error, SyntaxError):  # the script's own comes before any of its code runs
        inner = inner or trace
    sys.__excepthook__(kind, error.with_traceback(inner), inner)


_OUR_FILES = {"<frozen runpy>", __file__, str(Path(compat.__file__).with_name("__main__.py"))}
