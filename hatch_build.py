"""Compiles asyncserver/speedups/*.c where that is possible; elsewhere asyncserver is pure Python.

    pip install .            hatchling calls the hook below. With a compiler and Python's headers
                             the wheel has the extension; without it is pure, and the output says so
    python hatch_build.py    builds the extension in this tree, for the Python that runs this,
                             unless it is there already

ASYNCSERVER_SPEEDUPS=0 never builds it, =1 builds it or fails. CC and CFLAGS are used.

The package's URLs are those of the public repository that it is built from: its remote "origin", or
ASYNCSERVER_HOME=https://... An sdist keeps what it was built with.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # run by hand
    BuildHookInterface = MetadataHookInterface = object

PACKAGE = pathlib.Path(__file__).parent / "asyncserver" / "speedups"
# The suffix names interpreter, version and platform: those of several Pythons lie side by side.
NAME = "_compiled" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
FLAGS = ("-std=c11", "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")

# Where public forges show files of the newest version, and issues; "" where that is not the same
# for every repository: Codeberg has the branch's name there, the last two have issues elsewhere.
FORGES = {
    "github.com": ("blob/HEAD/", "issues"),
    "gitlab.com": ("-/blob/HEAD/", "-/issues"),
    "codeberg.org": ("", "issues"),
    "bitbucket.org": ("src/HEAD/", ""),
    "git.sr.ht": ("tree/HEAD/item/", ""),
}
# https://USER:TOKEN@HOST/OWNER/NAME.git, ssh://git@HOST:22/OWNER/NAME.git, git@HOST:OWNER/NAME.git
REMOTE = re.compile(
    r"(?:(?:https|ssh)://(?:[^@/]+@)?|[^@/:]+@)([a-z.]+)(?::\d+(?=/))?[:/](~?[\w.-]+(?:/[\w.-]+)+)/?", re.IGNORECASE
)


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


def home(root: pathlib.Path) -> str:
    """The public address of the repository in this folder, without what is secret in it; or "".

    Raises:
        ValueError: ASYNCSERVER_HOME is no such address.
    """
    if given := os.environ.get("ASYNCSERVER_HOME", ""):
        if not re.fullmatch(r"https://[^\s/@?#]+(/[^\s@?#]*)?", given):
            raise ValueError(f"ASYNCSERVER_HOME must be https://HOST/PATH, without a user; got {given!r}")
        return given.rstrip("/")
    # Named, as an sdist may lie inside of somebody else's repository.
    command = ["git", f"--git-dir={root / '.git'}", "remote", "get-url", "origin"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""
    found = REMOTE.fullmatch(remote)
    if found is None or found[1].lower() not in FORGES:
        return ""
    return f"https://{found[1].lower()}/{found[2].removesuffix('.git')}"


def urls(address: str) -> dict[str, str]:
    """The project's URLs at this home, by the labels that PyPI knows."""
    if not address:
        return {}
    files, issues = FORGES.get(address.split("/")[2], ("", ""))
    found = {"Homepage": address, "Source": address}
    found |= {"Issues": f"{address}/{issues}"} if issues else {}
    shown = {"Changelog": "CHANGELOG.md", "Documentation": "docs/index.md"} if files else {}
    return found | {label: f"{address}/{files}{name}" for label, name in shown.items()}


class CustomMetadataHook(MetadataHookInterface):  # type: ignore[misc]  # hatchling finds it by its base
    """Adds the URLs; those of an sdist are in its PKG-INFO, where hatchling has found them."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the table `project` of pyproject.toml."""
        metadata.setdefault("urls", urls(home(pathlib.Path(self.root))))


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling finds it by its base
    """Puts the extension into the wheel; an editable install uses this tree, so into that."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        if not self.metadata.core.urls:
            self.app.display_warning(
                "asyncserver without URLs: no remote `origin` on a public forge; ASYNCSERVER_HOME=https://... gives one"
            )
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
