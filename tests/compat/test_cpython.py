"""The interpreter's own test suites, with compat in the place of socketserver.

They are imported from the running interpreter, never copied, and run in a process of their own.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit.programs import environment

RUNNER = """
import sys, unittest

class Announcing(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        print("begins", test.id(), file=sys.stderr, flush=True)

import compat
compat.install()
from test import support
name, share, shares, *network = sys.argv[1:]
support.use_resources = ["cpu", "subprocess", "walltime", *network]
suite = unittest.defaultTestLoader.loadTestsFromName(name)

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
    unittest.TestSuite(list(chosen(suite))[int(share)::int(shares)]))
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
# Processes that share a suite's tests: these wait, one for 3 s in each of its eight tests of paths (the standard
# library's server waits for a request that does not come), one for 40 ms at each line (delayed acknowledgements).
SHARES = {"test_xmlrpc": 4, "test_imaplib": 3}


class Suite:
    """A suite of tests in processes of its own, which mostly wait."""

    def __init__(self, name: str, make_folder: Callable[[str], Path], stack: ExitStack) -> None:
        self.name = name
        self.parts = []
        shares = SHARES.get(name, 1)
        for share in range(shares):
            folder = make_folder(name)
            process = stack.enter_context(start(name, share, shares, folder))
            stack.callback(process.kill)
            self.parts.append((process, folder / "said"))

    def wrong(self) -> str:
        """Wait for its end; returns what went wrong, or nothing."""
        ran = 0
        for process, said in self.parts:
            told, _ = process.communicate(timeout=170)
            if process.returncode:
                return f"{self.name}: {said.read_text()[-5000:]}"
            ran += int(told.rpartition("ran ")[2])
        return "" if ran >= SUITES[self.name] else f"{self.name}: {ran} tests, not {SUITES[self.name]} and more"


def start(name: str, share: int, shares: int, folder: Path) -> "subprocess.Popen[str]":
    """Run every so many-th test of a suite in a process and a folder of its own."""
    network = ["network"] if name == "test_socketserver" else []  # it means the loopback interface
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, f"test.{name}", str(share), str(shares), *network],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


@pytest.mark.cpython
@pytest.mark.timeout(180)
def test_suites(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing fails that the interpreter's developers test. All suites at the same time, for they mostly wait."""
    there = [name for name in SUITES if importlib.util.find_spec("test") and importlib.util.find_spec(f"test.{name}")]
    if not there:
        pytest.skip("this interpreter ships no tests")
    print("not shipped:", *sorted(SUITES.keys() - there))
    with ExitStack() as stack:
        suites = [Suite(name, tmp_path_factory.mktemp, stack) for name in there]
        wrong = [said for suite in suites if (said := suite.wrong())]
    assert not wrong, "\n\n".join(wrong)
