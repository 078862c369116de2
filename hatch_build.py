"""Compiles asyncserver/speedups/*.c where that is possible; elsewhere asyncserver is pure Python.

    pip install .            hatchling calls the hook below. With a compiler and Python's headers
                             the wheel has the extension; without it is pure, and the output says so
    python hatch_build.py    builds the extension in this tree, for the Python that runs this,
                             unless it is there already

ASYNCSERVER_SPEEDUPS=0 never builds it, =1 builds it or fails. CC and CFLAGS are used.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object

PACKAGE = pathlib.Path(__file__).parent / "asyncserver" / "speedups"
# The suffix names interpreter, version and platform: those of several Pythons lie side by side.
NAME = "_compiled" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
FLAGS = ("-std=c11", "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")


class CannotBuildError(Exception):
    """There is no extension for this interpreter, or on this machine."""


def stamp() -> str:
    """Tell the C code of this tree from any other."""
    spec = importlib.util.spec_from_file_location("sources", PACKAGE / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    return str(sources.stamp())


def compile_to(target: pathlib.Path) -> None:
    """Compile all C files into one extension.

    Raises:
        CannotBuildError: it cannot be had here; says why.
    """
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise CannotBuildError("it is for CPython with a GIL")
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise CannotBuildError(f"Python's headers are not in {include}")
    command = [
        *shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"),
        *FLAGS,
        f'-DSTAMP="{stamp()}"',
        f"-I{include}",
        *shlex.split(os.environ.get("CFLAGS", "")),
        *map(str, sorted(PACKAGE.glob("*.c"))),
        "-o",
        str(target),
    ]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as exc:
        raise CannotBuildError(f"there is no compiler: {exc}") from exc
    if done.returncode:
        raise CannotBuildError(f"the compiler failed: {shlex.join(command)}\n{done.stdout}")
    if done.stdout:
        print(done.stdout, file=sys.stderr)


def build_here() -> None:
    """Have an extension of the sources as they are now in the tree. Raises CannotBuildError."""
    target = PACKAGE / NAME
    if target.exists() and f"{stamp()}\0".encode() in target.read_bytes():
        return
    with tempfile.TemporaryDirectory(dir=PACKAGE) as folder:  # a running program may have the old one loaded
        built = pathlib.Path(folder) / NAME
        compile_to(built)
        built.replace(target)
    print(f"built {target.relative_to(PACKAGE.parent.parent)}")


def attempt(build: Any, tell: Any) -> bool:
    """Build, as ASYNCSERVER_SPEEDUPS says; false if there is no extension, and tell why."""
    wanted = os.environ.get("ASYNCSERVER_SPEEDUPS", "")
    if wanted == "0":
        return False
    try:
        build()
    except CannotBuildError as exc:
        if wanted == "1":
            raise
        tell(f"asyncserver without its compiled extension, in pure Python: {exc}")
        return False
    return True


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling finds it by its base
    """Puts the extension into the wheel; an editable install uses this tree, so into that."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        if self.target_name != "wheel":
            return
        if version == "editable":
            attempt(build_here, self.app.display_warning)
            return
        self._folder = tempfile.TemporaryDirectory()
        built = pathlib.Path(self._folder.name) / NAME
        if attempt(lambda: compile_to(built), self.app.display_warning):
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"][str(built)] = f"asyncserver/speedups/{NAME}"

    def finalize(self, _version: str, _build_data: dict[str, Any], _artifact: str) -> None:
        """Called by hatchling when the wheel is written."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


if __name__ == "__main__":
    try:
        attempt(build_here, print)
    except CannotBuildError as error:
        sys.exit(str(error))
