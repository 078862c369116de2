"""docs/migration.md: what it shows before and after does the same, and differs as its tables say."""

from __future__ import annotations

import ast
import contextlib
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.programs import ROOT, Program
from tests.kit.proxies import connectable
from tests.kit.sockets import ask_once, connect, free_port, receive_exactly, reset
from tests.kit.waiting import wait_until

PAGE = (ROOT / "docs/migration.md").read_text()
#: Before and after, for each kind of server.
PAIRS = {
    text.partition("\n")[0]: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in PAGE.split("\n## ")[1:]
}
DATAGRAMS = "asyncio.DatagramProtocol"
STREAMS = [name for name in PAIRS if name != DATAGRAMS]
KEPT = re.findall(r"To keep the \w+: `(asyncserver\..*?\))`[,.]", PAGE)


@contextlib.contextmanager
def running(text: str, folder: Path, kind: int) -> Iterator[tuple[Program, int]]:
    """Run a program of the page, whose port is free; gives that too."""
    for module in ("gevent", "twisted"):
        if module in text:
            pytest.importorskip(module)
    port = free_port()
    (folder / "program.py").write_text(text.replace("8080", str(port)))
    with Program(["program.py"], folder) as program:
        name, state = (
            ("tcp", "0A") if kind == socket.SOCK_STREAM else ("udp", "07")
        )  # listening, bound: proc_net_tcp(5)
        there = re.compile(rf":{port:04X} \S+ {state} ")
        wait_until(lambda: program.process.poll() is not None or there.search(Path(f"/proc/net/{name}").read_text()))
        assert program.process.poll() is None, program.errors
        yield program, port


@pytest.mark.parametrize("name", PAIRS)
def test_both_answer_the_same(name: str, tmp_path: Path) -> None:
    """The same question, the same answer."""
    kind = socket.SOCK_DGRAM if name == DATAGRAMS else socket.SOCK_STREAM
    assert len(PAIRS[name]) == 2
    for text in reversed(PAIRS[name]):  # ours first: theirs may not be installed
        with running(text, tmp_path, kind) as (program, port):
            assert ask_once(port, kind, b"hello\n") == b"HELLO\n"
            assert program.errors == ""


@pytest.mark.parametrize("name", STREAMS)
def test_signal_within_a_message(name: str, tmp_path: Path) -> None:
    """Before, the program is gone, or cuts off its clients; after, it waits for the rest, answers, and ends well."""
    before, after = PAIRS[name]
    with running(before, tmp_path, socket.SOCK_STREAM) as (program, port), connect(port) as client:
        client.sendall(b"hello\nwor")
        assert receive_exactly(client, 6) == b"HELLO\n"
        program.tell(signal.SIGTERM)
        program.wait()
        with contextlib.suppress(ConnectionError):
            client.sendall(b"ld\n")
            assert client.recv(9) == b""
    with running(after, tmp_path, socket.SOCK_STREAM) as (program, port), connect(port) as client:
        client.sendall(b"hello\nwor")
        assert receive_exactly(client, 6) == b"HELLO\n"
        program.tell(signal.SIGTERM)
        wait_until(lambda: not connectable(("127.0.0.1", port)))
        client.sendall(b"ld\n")
        assert receive_exactly(client, 6) == b"WORLD\n"
        assert client.recv(9) == b""
        assert (program.wait(), program.errors) == (0, "")


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "Twisted"])
def test_client_that_resets(name: str, tmp_path: Path) -> None:
    """Before, it is a traceback; after, it is no error."""
    before, after = PAIRS[name]
    with running(before, tmp_path, socket.SOCK_STREAM) as (program, port):
        reset_within_a_line(port)
        program.wait_for("ConnectionResetError")
        program.wait_for("Traceback")
    with running(after, tmp_path, socket.SOCK_STREAM) as (program, port):
        reset_within_a_line(port)
        assert ask_once(port, question=b"hello\n") == b"HELLO\n"
        assert program.end() == 0
        assert (program.wait(), program.errors) == (0, "")


def reset_within_a_line(port: int) -> None:
    """Ask, hear, and break off the next question."""
    client = connect(port)
    client.sendall(b"hello\nwor")
    assert receive_exactly(client, 6) == b"HELLO\n"
    reset(client)


@pytest.mark.parametrize("expression", KEPT)
def test_what_is_kept(expression: str, tmp_path: Path) -> None:
    """The old handler, by the expression of the page, answers as it did."""
    kind = socket.SOCK_DGRAM if "datagrams" in expression else socket.SOCK_STREAM
    number = next(at for at, word in enumerate(("hosted", "from_callback", "from_protocol")) if word in expression)
    before, _ = list(PAIRS.values())[number]
    kept = (ast.Import, ast.ClassDef, ast.AsyncFunctionDef)
    handler = "\n".join(ast.unparse(one) for one in ast.parse(before).body if isinstance(one, kept))
    text = f"import asyncserver, compat\n{handler}\nasyncserver.run({expression})\n"
    with running(text, tmp_path, kind) as (program, port):
        assert ask_once(port, kind, b"hello\n") == b"HELLO\n"
        assert program.end() == 0
        assert (program.wait(), program.errors) == (0, "")


def test_page_is_complete() -> None:
    """Five kinds of servers; three of them can keep their handlers."""
    assert len(PAIRS) == 5
    assert len(KEPT) == 3
