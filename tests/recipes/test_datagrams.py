"""The recipes that take datagrams, and the same over connections: name server, syslog receiver."""

from __future__ import annotations

import logging
import logging.handlers
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit.sockets import connect
from tests.recipes.conftest import Person, Recipe, Start, ends_at_once

dnslib: Any = pytest.importorskip("dnslib")

RUDE_QUESTIONS = {
    "nothing": b"",
    "half a header": b"\0\7\1\0\0",
    "cut off": b"\0\7\1\0\0\1\0\0\0\0\0\0\3www",
    "an answer": b"\0\7\x81\0\0\1\0\0\0\0\0\0\3www\7example\3com\0\0\1\0\1",
    "no question": bytes(12),
    "labels without end": b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"\x3f" * 500,
}


def test_name_server(start: Start) -> None:
    """It knows its names in any case, over UDP and TCP; of others it says that they do not exist."""
    udp, tcp = start("name_server.py").ports()
    for name, kind, code, found in (
        ("WWW.example.com", "A", 0, ["192.0.2.80"]),
        ("mail.example.com", "AAAA", 0, []),
        ("no.example.com", "A", 3, []),
    ):
        question = dnslib.DNSRecord.question(name, kind)
        for port, over_tcp in ((udp, False), (tcp, True)):
            reply = dnslib.DNSRecord.parse(question.send("127.0.0.1", port, tcp=over_tcp, timeout=20))
            assert (reply.header.id, reply.header.rcode) == (question.header.id, code)
            assert [str(record.rdata) for record in reply.rr] == found
            assert str(reply.q.qname) == name + "."


def test_rude_questions(start: Start) -> None:
    """What is no question gets no answer, and over TCP an end; the next client is served."""
    udp, tcp = start("name_server.py").ports()
    good = dnslib.DNSRecord.question("www.example.com").pack()
    with connect(udp, socket.SOCK_DGRAM) as client:
        for question in RUDE_QUESTIONS.values():
            client.send(question)
        client.send(good)
        assert client.recv(1000)[:2] == good[:2]
    for question in RUDE_QUESTIONS.values():
        with Person(tcp) as client:
            client.sock.sendall(len(question).to_bytes(2, "big") + question)
            assert client.rest() == b""


def test_dig(start: Start) -> None:
    """The command of the page."""
    command = shutil.which("dig")
    if command is None:
        pytest.skip("dig is not installed")
    udp, tcp = start("name_server.py").ports()
    for port, more in ((udp, []), (tcp, ["+tcp"])):
        asked = [command, "@127.0.0.1", "-p", str(port), "+short", "www.example.com", *more]
        assert subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout == "192.0.2.80\n"


def test_syslog_in_every_way(start: Start, tmp_path: Path) -> None:
    """Both forms of a message, by UDP, a Unix socket, and TCP with lengths and with lines."""
    receiver = start("syslog_receiver.py")
    udp, tcp = receiver.ports()
    modern, old = b"<165>1 2026-11-29T19:00:00Z host app - - - hello", b"<34>Nov 29 19:00:00 host app: hello"
    with connect(udp, socket.SOCK_DGRAM) as client:
        client.send(modern)
        heard(receiver, "127.0.0.1 20.notice: 2026-11-29T19:00:00Z host app - - - hello")
    with connect(str(tmp_path / "syslog.sock"), socket.SOCK_DGRAM) as client:
        client.send(old)
        heard(receiver, "here 4.critical: Nov 29 19:00:00 host app: hello")
    with Person(tcp) as client:
        client.sock.sendall(
            b"%d %b%d <14>two\nlines<14>by itself\n<15>the next\n" % (len(modern), modern, len("<14>two\nlines"))
        )
        heard(receiver, "127.0.0.1 20.notice: 2026-11-29T19:00:00Z host app - - - hello", 2)
        heard(receiver, r"127.0.0.1 1.info: two\nlines")
        heard(receiver, "127.0.0.1 1.info: by itself")
        heard(receiver, "127.0.0.1 1.debug: the next")
        assert ends_at_once(receiver, client)


def heard(receiver: Recipe, line: str, times: int = 1) -> None:
    """Wait until it has printed that line."""
    receiver.wait_for(line + "\n", times)


def test_rude_senders_of_syslog(start: Start) -> None:
    """Nothing that is sent can forge a line of the output; a length or line without end ends the connection."""
    receiver = start("syslog_receiver.py")
    udp, tcp = receiver.ports()
    with connect(udp, socket.SOCK_DGRAM) as client:
        client.send(b"<14>one\nlocalhost 0.emergency: \x1b[2J\xff")
        heard(receiver, r"127.0.0.1 1.info: one\nlocalhost 0.emergency: \x1b[2J\xff")
        client.send(b"<999>no such priority")
        heard(receiver, "127.0.0.1 1.notice: <999>no such priority")
        client.send(b"")
        heard(receiver, "127.0.0.1 1.notice: ")
        client.send(b"<14>" + b"x" * 9000)
        heard(receiver, "127.0.0.1 1.info: " + "x" * 8188)
    long = b"<14>" + b"x" * 8193
    for rude in (b"99999 <14>", b"8193 <14>", b"5x <14>", b"123456", long, long + b"\n", b"8197 " + long):
        with Person(tcp) as client:
            client.sock.sendall(rude)
            assert client.rest() == b""
    assert receiver.output.count("\n") == 4


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_handler_of_the_standard_library(start: Start, kind: socket.SocketKind) -> None:
    """`logging.handlers.SysLogHandler` by UDP, and by TCP, where it ends messages with a zero byte."""
    receiver = start("syslog_receiver.py")
    port = receiver.ports()[kind == socket.SOCK_STREAM]
    handler = logging.handlers.SysLogHandler(("127.0.0.1", port), logging.handlers.SysLogHandler.LOG_DAEMON, kind)
    try:
        for message in ("out of paper", "and of ink"):
            handler.handle(logging.makeLogRecord({"msg": message, "levelname": "ERROR"}))
            heard(receiver, f"127.0.0.1 3.error: {message}")  # while the connection is open
    finally:
        handler.close()


def test_syslog_in_pieces(start: Start) -> None:
    """A message that comes byte by byte is one message, behind a length and as a line."""
    receiver = start("syslog_receiver.py")
    with Person(receiver.ports()[1]) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for sign in b"10 <14>length<14>line\n":
            client.sock.sendall(bytes([sign]))
        heard(receiver, "127.0.0.1 1.info: length")
        heard(receiver, "127.0.0.1 1.info: line")
        assert ends_at_once(receiver, client)


def test_logger(start: Start, tmp_path: Path) -> None:
    """The commands of the page."""
    command = shutil.which("logger")
    if command is None:
        pytest.skip("logger is not installed")
    receiver = start("syslog_receiver.py")
    udp, tcp = receiver.ports()
    for number, way in enumerate(
        (
            ["--server", "127.0.0.1", "--port", str(udp), "--udp"],
            ["--server", "127.0.0.1", "--port", str(tcp), "--tcp"],
            ["--server", "127.0.0.1", "--port", str(tcp), "--tcp", "--octet-count"],
            ["--socket", str(tmp_path / "syslog.sock")],
        )
    ):
        subprocess.run([command, *way, f"message {number}"], check=True, timeout=60)
        receiver.wait_for(f"message {number}\n")
