"""The recipes that speak lines: chat, store, devices, ticker."""

from __future__ import annotations

import re
from pathlib import Path

from tests.kit.waiting import wait_until
from tests.recipes.conftest import Person, Start, ends_at_once


def join(port: int, name: bytes, receive_buffer: int | None = None) -> Person:
    """Give a name to the chat, and hear that it is one."""
    person = Person(port, receive_buffer)
    person.says(name)
    assert person.hears() == b"Your name? * " + name + b" is here"
    return person


def test_chat(start: Start) -> None:
    """Each hears what others say, who comes and who leaves; a name is somebody's as long as they are there."""
    chat = start("chat.py")
    (port,) = chat.ports()
    with join(port, b"ann") as ann, join(port, b"bob") as bob:
        assert ann.hears() == b"* bob is here"
        ann.says("good morning, Jürgen\a\x1b[2J".encode())
        ann.says(b"/who")
        assert (bob.hears(), ann.hears()) == ("ann: good morning, Jürgen[2J".encode(), b"ann bob")
        with Person(port) as late:
            late.says(b"ann")
            late.says(b"too long a name, and not of letters")
            late.says(b"zoe")
            free = b"Letters and digits, please, and a name that is free: "
            assert late.hears() == b"Your name? " + 2 * free + b"* zoe is here"
            late.says(b"/quit")
            assert late.rest() == b""
        assert [ann.hears(), ann.hears()] == [b"* zoe is here", b"* zoe has left"]
        bob.resets()
        assert ann.hears() == b"* bob has left"
        with join(port, b"bob") as bob, Person(port) as guest:
            assert ann.hears() == b"* bob is here"
            ann.says(b"last words")
            assert bob.hears() == b"ann: last words"
            assert ends_at_once(chat, ann, bob, guest)


def test_rude_members_of_the_chat(start: Start) -> None:
    """Who sends no end of a line is let go, and so is who reads nothing; the others talk on."""
    chat = start("chat.py", {"max_unsent=64 * 1024": "max_unsent=1024", "asyncio.sleep(0.05)": "asyncio.sleep(0)"})
    (port,) = chat.ports()
    with join(port, b"ann") as ann, join(port, b"deaf", receive_buffer=1024), join(port, b"endless") as endless:
        assert [ann.hears(), ann.hears()] == [b"* deaf is here", b"* endless is here"]
        endless.sock.sendall(b"x" * 501)
        assert endless.rest() == b""
        assert ann.hears() == b"* endless has left"
        with join(port, b"bob") as bob:
            said = 0
            while (heard := ann.hears()) != b"* deaf has left" and said < 100_000:
                assert heard in {b"* bob is here", b"bob: " + b"x" * 400}
                bob.says(b"x" * 400)
                said += 1
            assert heard == b"* deaf has left"
        chat.wait_for("more than max_unsent bytes waited for it")


def test_store(start: Start) -> None:
    """Values of any bytes come back as they were set, in one go too; what it does not know, it says."""
    (port,) = start("store.py").ports()
    with Person(port) as client:
        client.says(b"set hello 7 0 6\r\nwo\r\nrl\r\nget hello none\r\nget\r\ndelete hello\r\ndelete hello\r\nquit\r")
        answers = b"STORED|VALUE hello 7 6|wo|rl|END|ERROR|DELETED|NOT_FOUND|".replace(b"|", b"\r\n")
        assert client.reads(1000) == answers


def test_rude_clients_of_the_store(start: Start) -> None:
    """It keeps no more than it has room for, takes no value that is too large, and no value for a command."""
    (port,) = start("store.py", {"MAX_VALUES = 10_000": "MAX_VALUES = 2"}).ports()
    with Person(port) as client:
        for key in (b"a", b"b", b"c"):
            client.says(b"set %b 0 0 1\r\n%b\r\nget a\r" % (key, key))
            assert client.hears() == b"STORED"
            assert [client.hears(), client.hears(), client.hears()] == [b"VALUE a 0 1", b"a", b"END"]
        client.says(b"get b c\r")
        assert [client.hears(), client.hears(), client.hears()] == [b"VALUE c 0 1", b"c", b"END"]
    for words, answer in (
        (b"set a 0 0 16385\r\nquit\r", b"SERVER_ERROR too large, or an option that is not served here"),
        (b"set a 0 0 1\r\nquit\r", b"CLIENT_ERROR bad data chunk"),
        (b"x" * 2049, b""),
        (
            b"set %b 0 0 1\r\na\r\nquit\r" % (b"k" * 251),
            b"SERVER_ERROR too large, or an option that is not served here",
        ),
        (b"set a 0 0 " + b"9" * 1000, b"SERVER_ERROR too large, or an option that is not served here"),
    ):
        with Person(port) as client:
            client.says(words)
            assert client.hears() == answer
            assert client.rest() == b""


def test_devices(start: Start, tmp_path: Path) -> None:
    """Readings come in, commands go out, each to its device, and each answer to who has asked."""
    gateway = start("devices.py", {"timeout=5": "timeout=0.2"})
    (port,) = gateway.ports()
    with Person(port) as pump, Person(port) as lamp, Person(str(tmp_path / "devices.sock")) as operator:
        pump.says(b"pump\n21.5 bar")
        lamp.says(b"lamp\non")
        gateway.wait_for("b'pump': b'21.5 bar'")
        gateway.wait_for("b'lamp': b'on'")
        operator.says(b"pump stop\nlamp off\nnone stop")
        assert pump.hears() == b"stop"
        pump.says(b"=stopped")
        assert lamp.hears() == b"off"
        assert (operator.hears(), operator.hears()) == (b"stopped", b"no answer")
        lamp.says(b"=too late\n=of its own accord\ndimmed")
        gateway.wait_for("b'lamp': b'dimmed'")
        assert operator.hears() == b"no such device"
        operator.says(b"lamp on")
        assert lamp.hears() == b"on"
        lamp.says(b"=is on")
        assert operator.hears() == b"is on"
        wait_until(lambda: is_kept_alive(port))
        pump.says(b"20 bar")
        gateway.wait_for("b'pump': b'20 bar'")
        assert ends_at_once(gateway, pump, lamp, operator)


def is_kept_alive(port: int) -> bool:
    """Whether the kernel has a keepalive timer, 02, for each connection of a port: proc_net_tcp(5)."""
    timers = re.findall(rf":{port:04X} \S+ 01 \S+ (\d\d):", Path("/proc/net/tcp").read_text())
    return timers != [] and set(timers) == {"02"}


def test_devices_that_come_back(start: Start, tmp_path: Path) -> None:
    """A device that connects again takes the place of its old connection, whose askers hear that nobody answers."""
    gateway = start("devices.py")
    (port,) = gateway.ports()
    with Person(port) as old, Person(port) as new, Person(str(tmp_path / "devices.sock")) as operator:
        old.says(b"pump\nold")
        gateway.wait_for("b'pump': b'old'")
        operator.says(b"pump stop")
        assert old.hears() == b"stop"
        new.says(b"pump\nnew")
        assert old.rest() == b""
        assert operator.hears() == b"no answer"
        operator.says(b"pump start")
        assert new.hears() == b"start"
        new.says(b"=started")
        assert operator.hears() == b"started"


def test_ticker(start: Start) -> None:
    """All get the same ticks, whatever they send; one who leaves takes nothing from the others."""
    ticker = start("ticker.py", {"EVERY = 1.0": "EVERY = 0.01"})
    (port,) = ticker.ports()
    with Person(port) as one, Person(port) as other:
        other.sock.sendall(b"x" * 100_000)
        for client in (one, other, one, other):
            assert re.fullmatch(rb"\d+\.\d\d \d+\.\d\d \d+\.\d\d", client.hears())
        other.resets()
        assert one.hears()
        one.says(b"thanks")
        assert one.hears()
        assert ends_at_once(ticker, one)
