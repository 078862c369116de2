"""The programs in README and guides, run as a reader would: each block saved as a file, started, asked, and ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.docs.blocks import Block, blocks
from tests.kit.programs import ROOT, wait_until_asleep
from tests.kit.sockets import free_port

PROGRAMS = blocks("python")
# Those of other pages have tests of their own, which know what to ask.
PAGES = {"README.md"} | {f"docs/{name}.md" for name in ("index", "tutorial", "streams", "datagrams", "limits", "tls")}
PAGES |= {"docs/running.md", "docs/compat.md"}
SERVERS = [block for block in PROGRAMS if block.page in PAGES and "8080" in block.text]

# What is asked, and answered, if not "hello" in capitals: the first row counts whose words are in the program.
ANSWERS = {
    "sendto(": (b"hello\n", b"1 devices"),
    "post(": (b"hello\n", b"hello\n"),
    "ticker": (b"hello\n", b"tick\n"),
    "calculator": (b"2 + 3\n", b"5\n"),
    "%d": (b"hello\n", b"5\n"),
}


def answers(program: str, port: int, folder: Path, question: bytes) -> Iterator[bytes]:
    """Ask in each way in which the program serves."""
    there = ("127.0.0.1", port)
    if "upper.sock" in program:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "upper.sock"))
            yield answer(client, question)
    if "serve_datagrams" in program:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect(there)
            yield answer(client, question)
    elif "tls_context" in program:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        with (
            socket.create_connection(there) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            yield answer(client, question)
    else:
        with socket.create_connection(there) as hears, socket.create_connection(there) as says:
            says.settimeout(10)
            yield answer(says if "chat" not in program else hears, question, says)


def answer(client: socket.socket, question: bytes, says: socket.socket | None = None) -> bytes:
    """Ask, or let another client say it."""
    client.settimeout(10)
    (says or client).sendall(question)
    return client.recv(99)


def certificates(folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "chain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))


def wait_until_served(process: subprocess.Popen[bytes], port: int, kind: socket.SocketKind) -> None:
    """Wait until the kernel has a socket there: a program has no other way to say that it serves."""
    name, state = ("tcp", "0A") if kind == socket.SOCK_STREAM else ("udp", "07")  # listening, bound: proc_net_tcp(5)
    there = re.compile(rf":{port:04X} \S+ {state} ")
    while process.poll() is None:
        if there.search(Path(f"/proc/net/{name}").read_text()):
            return
    pytest.fail(f"the program ended with status {process.returncode}")


def save(page: str, folder: Path, port: int = 8080) -> None:
    """Save the blocks of a page, each as its module."""
    for block in PROGRAMS:
        if block.page == page:
            (folder / f"{block.module}.py").write_text(block.text.replace("8080", str(port)))


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize("block", SERVERS, ids=str)
def test_program_serves_and_ends_politely(block: Block, tmp_path: Path) -> None:
    """Each server answers, and Ctrl-C ends it: with status 0, unless it is one of `socketserver`, which knows none."""
    port = free_port()
    certificates(tmp_path)
    save(block.page, tmp_path, port)
    process = start([f"{block.module}.py"], tmp_path)
    question, expected = next((ANSWERS[words] for words in ANSWERS if words in block.text), (b"hello\n", b"HELLO\n"))
    try:
        kind = socket.SOCK_DGRAM if "serve_datagrams" in block.text else socket.SOCK_STREAM
        wait_until_served(process, port, kind)
        assert set(answers(block.text, port, tmp_path, question)) == {expected}
        if "asyncserver.run" not in block.text:  # whose loop wakes up
            wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == (-signal.SIGINT if "serve_forever()" in block.text else 0)
    finally:
        process.kill()
        process.communicate()


def test_tests_of_the_tutorial_pass(tmp_path: Path) -> None:
    """As the tutorial says to run them."""
    save("docs/tutorial.md", tmp_path)
    process = start(["-m", "unittest"], tmp_path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told.decode()
    assert re.search(rb"Ran [3-9] tests", told)


def test_programs_are_found() -> None:
    """Each page shows some; those of the README are all run."""
    assert {block.page for block in SERVERS} == PAGES
    shown = [block for block in PROGRAMS if block.page == "README.md"]
    assert len(shown) >= 4
    assert all(block in SERVERS for block in shown)
