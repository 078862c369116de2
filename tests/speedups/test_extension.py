"""The compiled extension: when it is used, how it is built, and what stands in a function's place."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import pickle
import pydoc
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

import asyncserver
from asyncserver.speedups import extension
from tests.kit.faults import ServerProcess
from tests.kit.programs import LOOPS, ROOT, run_script

BUILT = importlib.util.find_spec("asyncserver.speedups._compiled") is not None
PURE = os.environ.get("ASYNCSERVER_PURE", "0") not in {"", "0"}
compiled = pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")


def test_it_is_used_if_it_can_be() -> None:
    """`accelerated` says whether it is in use: where it was built, and is not switched off."""
    assert asyncserver.accelerated == (BUILT and not PURE)


@pytest.mark.parametrize(("value", "used"), [("1", False), ("0", BUILT), ("", BUILT)])
def test_switch(value: str, used: bool) -> None:
    """ASYNCSERVER_PURE=1 switches it off; --version says what is in use."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncserver", "--version"],
        env={**os.environ, "ASYNCSERVER_PURE": value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"asyncserver {asyncserver.__version__} ({'compiled' if used else 'pure Python'})\n"


@compiled
def test_stale_extension_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One that was made of other sources is left alone, and the log says what to do."""
    monkeypatch.setattr(extension, "stamp", lambda: "0badc0de")
    with caplog.at_level(logging.WARNING, "asyncserver"):
        assert extension._load() is None
    assert "python hatch_build.py" in caplog.text


# -- building


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run hatch_build.py in a copy of the tree."""
    if not folder.exists():
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "asyncserver/speedups", folder / "asyncserver/speedups", ignore=ignored)
        shutil.copy(ROOT / "hatch_build.py", folder)
    command = [sys.executable, str(folder / "hatch_build.py")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def built(folder: Path) -> list[Path]:
    """The extensions in a copy of the tree."""
    return list(folder.rglob("*.so"))


def can_build() -> bool:
    """Whether this machine can compile for this Python."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and headers.exists() and not sysconfig.get_config_var("Py_GIL_DISABLED")


@pytest.mark.skipif(not can_build() or PURE, reason="there is none here, or it is switched off")
@pytest.mark.skipif(os.environ.get("ASYNCSERVER_SPEEDUPS") == "0", reason="it is not wanted")
def test_the_tests_do_not_run_without_it_unnoticed() -> None:
    """Where it can be built it has been, as `make` does: all these tests are of what is compiled."""
    assert asyncserver.accelerated, "python hatch_build.py"
    assert not inspect.isfunction(asyncserver.Stream.receive)


@pytest.mark.parametrize("loop", LOOPS)
def test_programs_of_the_tests_do_as_the_tests(loop: str, tmp_path: Path) -> None:
    """ASYNCSERVER_PURE=1 reaches them."""
    with ServerProcess(loop, tcp={}) as server:
        assert server.report()["accelerated"] == asyncserver.accelerated
    status, output, _ = run_script("import asyncserver\nprint(asyncserver.accelerated)", tmp_path)
    assert (status, output) == (0, f"{asyncserver.accelerated}\n")


@pytest.mark.skipif(not can_build(), reason="needs a C compiler and Python's headers")
def test_it_is_built_once_and_again_when_its_sources_change(tmp_path: Path) -> None:
    """A second build does nothing, until a source has changed; the compiler has nothing to warn of."""
    first = build(tmp_path / "tree")
    assert first.returncode == 0
    assert first.stderr == ""
    (made,) = built(tmp_path / "tree")
    age = made.stat().st_mtime_ns
    assert build(tmp_path / "tree").stdout == ""
    assert made.stat().st_mtime_ns == age
    with (tmp_path / "tree/asyncserver/speedups/module.c").open("a") as source:
        source.write("/* changed */\n")
    assert build(tmp_path / "tree").stdout.startswith("built ")
    assert made.stat().st_mtime_ns > age


def test_machine_without_a_compiler(tmp_path: Path) -> None:
    """There it is pure, which is told; who asks for the extension gets an error."""
    done = build(tmp_path / "tree", CC=str(tmp_path / "no-such-compiler"), ASYNCSERVER_SPEEDUPS="")
    assert done.returncode == 0
    assert "in pure Python" in done.stdout
    assert build(tmp_path / "tree", CC=str(tmp_path / "no-such-compiler"), ASYNCSERVER_SPEEDUPS="1").returncode != 0
    assert not built(tmp_path / "tree")


def test_nothing_is_built_where_it_is_not_wanted(tmp_path: Path) -> None:
    """ASYNCSERVER_SPEEDUPS=0 says so."""
    done = build(tmp_path / "tree", ASYNCSERVER_SPEEDUPS="0")
    assert (done.returncode, done.stdout, built(tmp_path / "tree")) == (0, "", [])


# -- what stands in a function's place


def functions() -> list[object]:
    """Some functions that the extension has, as they are here."""
    stream = asyncserver.Stream
    return [stream.receive, stream.receive_until, stream.send]


@pytest.mark.parametrize("function", functions())
def test_it_looks_like_the_function(function: object) -> None:
    """Tools see a coroutine function with its name, signature and docstring, compiled or not."""
    pure = inspect.unwrap(function)  # type: ignore[arg-type]
    assert inspect.isfunction(pure)
    assert inspect.iscoroutinefunction(function)
    assert inspect.signature(function) == inspect.signature(pure)
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        assert getattr(function, name) == getattr(pure, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert (pure.__doc__ or "").partition("\n")[0] in pydoc.render_doc(function)


@compiled
def test_unknown_definition() -> None:
    """A definition that nothing was compiled for is a mistake, found when it is imported."""
    with pytest.raises(LookupError, match="nothing is compiled for"):
        extension.accelerate(can_build)


@compiled
@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters came with Python 3.14")
def test_subinterpreters_have_an_extension_each() -> None:
    """It works there, also with a GIL of their own, and again in the next one."""
    script = """
        import concurrent.interpreters, textwrap
        code = '''
        import asyncio, asyncserver
        async def echo(stream):
            async for data in stream:
                await stream.send(data)
        async def main():
            async with asyncserver.serve(echo, "127.0.0.1", 0) as server:
                reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
                writer.write(b"hello")
                print(asyncserver.accelerated, await reader.readexactly(5))
                writer.close()
        asyncio.run(main())
        '''
        for _ in range(2):
            interpreter = concurrent.interpreters.create()
            interpreter.exec(textwrap.dedent(code))
            interpreter.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True b'hello'\n" * 2
