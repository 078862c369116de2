"""What a program finds in its `__main__` under `python -m compat`, and what of ours may depend on its import order."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.kit.programs import python

PROGRAM = """
import multiprocessing, sys

number: int = 1
if len(sys.argv) > 5:
    never: str

def told():
    import __main__
    shown = {
        name: type(value).__name__ if name in {"__loader__", "__builtins__", "__annotate__"} else value
        for name, value in vars(__main__).items()
        if name.startswith("__") and name != "__spec__"
    }
    return sorted(shown.items()), getattr(__main__, "__annotations__", "none")

if __name__ == "__main__":
    print(*told())
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, *pool.apply(told))
"""

LAZY = pytest.mark.skipif(sys.version_info < (3, 15), reason="lazy imports came with Python 3.15")


@pytest.fixture(params=["script", "module", "package", "folder", "zip"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A program, as it is named on the command line."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(PROGRAM)
    (tmp_path / "alone.py").write_text(PROGRAM)
    archive = shutil.make_archive(str(tmp_path / "app"), "zip", tmp_path / "app")
    return {
        "script": ["alone.py"],
        "module": ["-m", "alone"],
        "package": ["-m", "app"],
        "folder": ["app"],
        "zip": [archive],
    }[str(request.param)]


def test_main_holds_what_it_holds_without_us(program: list[str], tmp_path: Path) -> None:
    """Each name with its value, annotations among them, also in multiprocessing's children; but for `__spec__`."""
    methods = ["spawn", "forkserver"] if program[-1] == "alone" or program == ["alone.py"] else []
    theirs = python(*program, *methods, cwd=tmp_path).stdout
    assert theirs.count("{'number': <class 'int'>}") >= 1 + len(methods)
    assert python("-m", "compat", *program, *methods, cwd=tmp_path).stdout == theirs


@pytest.mark.parametrize("annotated", [False, True])
def test_program_of_strings_and_one_without_annotations(annotated: bool, tmp_path: Path) -> None:
    """`from __future__ import annotations` keeps them as text; a program without any has what Python gives it."""
    (tmp_path / "alone.py").write_text(
        "from __future__ import annotations\nx: Missing = 1\nprint(__annotations__)\n"
        if annotated
        else "print(sorted(vars()), getattr(__import__('__main__'), '__annotations__', 'none'))\n"
    )
    theirs = python("alone.py", cwd=tmp_path).stdout
    assert python("-m", "compat", "alone.py", cwd=tmp_path).stdout == theirs


# Imports that wait until they are needed: PEP 810.


@LAZY
@pytest.mark.parametrize(
    "how", [["-X", "lazy_imports=all"], ["-c", "import compat; compat.install(); import script; script.__name__"]]
)
def test_lazy_imports_of_everything(how: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What of ours was left for later still finds the standard library's socketserver; the program finds ours."""
    (tmp_path / "script.py").write_text(
        "import http.server, xmlrpc.server, sys\n"
        "from socketserver import ThreadingMixIn\n"
        "print('http.server' in sys.modules)\n"
        "print([one.__module__ for one in http.server.ThreadingHTTPServer.__mro__[1:5]])\n"
        "print(ThreadingMixIn.__module__, xmlrpc.server.SimpleXMLRPCServer.__mro__[1].__module__)\n"
    )
    if "-c" in how:
        monkeypatch.setenv("PYTHON_LAZY_IMPORTS", "all")
        ended = python(*how, cwd=tmp_path)
    else:
        ended = python(*how, "-m", "compat", "script.py", cwd=tmp_path)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "False",
        "['compat.threads', 'socketserver', 'http.server', 'compat.servers']",
        "compat.threads compat.servers",
    ]


@LAZY
def test_lazy_imports_of_the_command_line(tmp_path: Path) -> None:
    """`python -X lazy_imports=all -m asyncserver` can serve every kind of handler."""
    (tmp_path / "app.py").write_text(
        "import asyncio, socketserver\n"
        "class Legacy(socketserver.BaseRequestHandler): ...\n"
        "class Protocol(asyncio.Protocol): ...\n"
        "async def handler(stream): ...\n"
    )
    for name in ("Legacy", "Protocol", "handler"):
        arguments = ["-m", "asyncserver", f"app:{name}", "--tcp", "127.0.0.1:0", "--check"]
        ended = python("-X", "lazy_imports=all", *arguments, cwd=tmp_path)
        assert ended.stderr == ""
        assert "all of it can be served" in ended.stdout


# Names of socketserver's that it makes when they are asked for.


@pytest.mark.skipif(sys.version_info < (3, 15), reason="socketserver.__version__ is deprecated from Python 3.15 on")
@pytest.mark.parametrize("name", ["compat", "socketserver"])
def test_warning_of_what_is_deprecated_names_the_callers_line(name: str, tmp_path: Path) -> None:
    """And comes once for a line, as the standard library's does."""
    (tmp_path / "script.py").write_text(
        f"import compat\ncompat.install()\nimport {name}\nfor _ in range(3):\n    {name}.__version__\n"
        f"from {name} import __version__\nprint(__version__)\n"
    )
    ended = python("-W", "default", tmp_path / "script.py")
    assert ended.stdout == "0.4\n"
    told = [line.partition(": ") for line in ended.stderr.splitlines() if "Warning" in line]
    assert [(place, text.partition(":")[0]) for place, _, text in told] == [
        (f"{tmp_path / 'script.py'}:{line}", "DeprecationWarning") for line in (5, 6)
    ]
