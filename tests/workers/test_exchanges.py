"""HTTPServer: HTTP from a supervisor's selector, turned by hand; with clients that are slow, many, gone or wrong."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from asyncserver.listening.binding import Binding
from asyncserver.monitoring import http as _http
from asyncserver.monitoring import monitor as _monitor
from asyncserver.workers.http_server import HTTPServer
from tests.kit.waiting import PATIENCE


class Turning:
    """HTTPServer in a selector of their own, turned by hand."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.bound = Binding(["127.0.0.1", "127.0.0.2"], 0).open_slots(socket.SOCK_STREAM, 1)[0]
        self.waiting: list[Callable[[_http.Response], object]] = []
        self.exchanges = HTTPServer(self.selector, self.bound, self._answer)
        self.later = False

    def _answer(self, request: _http.Request, answer: Callable[[_http.Response], object]) -> None:
        if self.later:
            self.waiting.append(answer)
        else:
            answer(_http.Response(HTTPStatus.OK, request.path.encode() * 500_000))

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.bound[0].address, timeout=PATIENCE)
        self.turn()
        return client

    def turn(self) -> None:
        """Do what there is to do now."""
        while keys := self.selector.select(0.01):
            for key, _ in keys:
                key.data()

    def receive_all(self, client: socket.socket) -> bytes:
        """Receive to the end, turn by turn."""
        received = bytearray()
        client.settimeout(0.01)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.turn()
            with contextlib.suppress(TimeoutError):
                data = client.recv(1 << 20)
                if not data:
                    return bytes(received)
                received += data
        raise AssertionError("no end")


@pytest.fixture
def turning() -> Iterator[Turning]:
    """What a supervisor has."""
    one = Turning()
    yield one
    one.exchanges.close()
    one.selector.close()


def test_exchange_takes_a_request_in_pieces_and_sends_as_the_client_reads(turning: Turning) -> None:
    """Neither waits for the other; what does not fit in the kernel waits for its turn."""
    with turning.connect() as client, turning.connect() as other:
        client.sendall(b"GET /a HTTP/1.1\r\nHost")
        turning.turn()
        other.sendall(b"GET /b HTTP/1.1\r\n\r\n")
        assert turning.receive_all(other).endswith(b"\r\n\r\n" + b"/b" * 500_000)
        client.sendall(b": x\r\n\r\n")
        assert turning.receive_all(client).endswith(b"\r\n\r\n" + b"/a" * 500_000)


@pytest.mark.parametrize(
    ("sent", "status"), [(b"POST / HTTP/1.1\r\n\r\n", 405), (b"GET /".ljust(_http.LONGEST_HEAD, b"x"), 431)]
)
def test_exchange_refuses_what_it_does_not_serve(turning: Turning, sent: bytes, status: int) -> None:
    """The method, a head without end."""
    with turning.connect() as client:
        client.sendall(sent)
        assert turning.receive_all(client).startswith(b"HTTP/1.1 %d " % status)


def test_exchange_that_is_slow_is_cut_off(turning: Turning) -> None:
    """One that asks nothing, and one that does not read its answer."""
    with turning.connect() as silent, turning.connect() as deaf:
        deaf.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        turning.turn()
        assert turning.exchanges.due - time.monotonic() <= _monitor.PATIENCE
        turning.exchanges.expire(turning.exchanges.due + 1)
        assert silent.recv(1) == b""
        with pytest.raises(ConnectionResetError):  # closed with the answer half sent
            while deaf.recv(1 << 20):
                pass
            raise ConnectionResetError
    assert turning.exchanges.due == float("inf")


def test_oldest_exchange_gives_way(turning: Turning) -> None:
    """However many come and wait, who comes now is answered."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(turning.connect()) for _ in range(_monitor.MOST_CLIENTS)]
        client = stack.enter_context(turning.connect())
        client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        assert turning.receive_all(client).startswith(b"HTTP/1.1 200 ")
        assert idle[0].recv(1) == b""
        idle[1].sendall(b"GET /y HTTP/1.1\r\n\r\n")
        assert turning.receive_all(idle[1]).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /x HTTP/1.1\r\n", b"GET /x HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("reset", [False, True])
def test_client_that_leaves_is_forgotten(turning: Turning, sent: bytes, reset: bool) -> None:
    """Before it has asked, in the middle, or with its answer under way; closed or reset."""
    client = turning.connect()
    client.sendall(sent)
    turning.turn()
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    turning.turn()
    assert turning.exchanges.due == float("inf")


def test_exchange_dropped_in_this_turn_is_not_touched_again(turning: Turning) -> None:
    """Its event may have come together with that of the client it had to give way to."""
    with turning.connect(), contextlib.ExitStack() as stack:
        oldest = next(iter(turning.selector.get_map().values()))
        keys = [key for key in turning.selector.get_map().values() if key is not oldest]
        for _ in range(_monitor.MOST_CLIENTS):
            stack.enter_context(turning.connect())
        for key in keys:
            key.data()
        assert len(turning.selector.get_map()) == _monitor.MOST_CLIENTS + len(turning.bound)


def test_answer_that_comes_when_the_client_has_gone_goes_nowhere(turning: Turning) -> None:
    """The workers were asked for it, and took too long."""
    turning.later = True
    with turning.connect() as client:
        client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        turning.turn()
        turning.exchanges.expire(turning.exchanges.due + 1)
        assert client.recv(1) == b""
    turning.waiting[0](_http.Response(HTTPStatus.OK, b""))
    turning.turn()


def test_accepting_pauses_when_it_fails(turning: Turning, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, the supervisor does not spin, however many listeners find out in one turn; it tries again."""

    def fail(_: socket.socket) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", fail)
        other = socket.create_connection(turning.bound[1].address, timeout=PATIENCE)
        client = turning.connect()
    with client, other:
        assert not turning.selector.get_map()
        turning.exchanges.expire(turning.exchanges.due)
        client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        assert turning.receive_all(client).startswith(b"HTTP/1.1 200 ")
