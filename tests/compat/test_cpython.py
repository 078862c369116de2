"""The interpreter's own test suites, with compat in the place of socketserver.

They are imported from the running interpreter, never copied, and run in a process of their own.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit.programs import environment

Suites = dict[str, tuple["subprocess.Popen[str]", Path]]  # each with the file that holds what it said

RUNNER = """
import sys, unittest

class Announcing(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        print("begins", test.id(), file=sys.stderr, flush=True)

import compat
compat.install()
from test import support
support.use_resources = ["cpu", "subprocess", "walltime"] + (["network"] if sys.argv[2:] else [])
suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[1])

LEFT_OUT = (
    "MiscTestCase.test_all",  # compares __module__ with 'socketserver'
    # Start http.server in processes of their own, without compat, on a port that was free a while ago.
    "CommandLineRunTimeTestCase.test_http_client",
    "CommandLineRunTimeTestCase.test_https_client",
)

def chosen(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from chosen(test)
        elif not test.id().endswith(LEFT_OUT):
            yield test

result = unittest.TextTestRunner(resultclass=Announcing, stream=sys.stderr).run(
    unittest.TestSuite(chosen(suite)))
assert sys.modules["socketserver"] is compat
import os
print("ran", result.testsRun, flush=True)
os._exit(not result.wasSuccessful())
"""
# How many tests each must have run at least, so that none can pass by being skipped as a whole.
SUITES = {
    "test_socketserver": 20,
    "test_httpservers": 50,
    "test_xmlrpc": 40,
    "test_wsgiref": 30,
    "test_logging": 150,
    "test_imaplib": 80,
    "test_docxmlrpc": 8,
    "test_urllib2_localnet": 15,
    "test_pydoc": 60,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suites]:
    """All suites, started at the same time: they mostly wait."""
    with ExitStack() as stack:
        suites: Suites = {}
        for name in SUITES:
            if importlib.util.find_spec("test") and importlib.util.find_spec(f"test.{name}"):
                folder = tmp_path_factory.mktemp(name)
                process = stack.enter_context(start(name, folder))
                stack.callback(process.kill)
                suites[name] = process, folder / "said"
        yield suites


def start(name: str, folder: Path) -> "subprocess.Popen[str]":
    """Run a suite in a process of its own, in a folder of its own."""
    network = ["network"] if name == "test_socketserver" else []  # it means the loopback interface
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, f"test.{name}", *network],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


@pytest.mark.cpython
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", list(SUITES))
def test_suite(name: str, running: Suites) -> None:
    """Nothing fails that the interpreter's developers test."""
    if name not in running:
        pytest.skip(f"this interpreter ships no test.{name}")
    process, said = running[name]
    told, _ = process.communicate(timeout=170)
    assert process.returncode == 0, said.read_text()[-5000:]
    assert int(told.rpartition("ran ")[2]) >= SUITES[name]
