"""shutdown() at once from everywhere, an idle server that sleeps, a closed one that does not spin."""

import os
import queue
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, Echo
from tests.kit.waiting import wait_until

KINDS = ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "UDPServer", "ThreadingUDPServer"]


POLL_SECONDS = 30.0


def start(server: Any) -> threading.Thread:
    """Serve in a thread, with a poll interval that nobody would wait for."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,))
    thread.start()
    wait_until(lambda: server._compat_loops)
    return thread


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_does_not_wait_for_the_poll_interval(kind: str) -> None:
    """While serving, and again after it. (It takes less than a millisecond; but a busy machine may be slow.)"""
    with getattr(compat, kind)(LOOPBACK, Echo) as server:
        for _ in range(9):
            thread = start(server)
            assert seconds(server.shutdown) < POLL_SECONDS / 2
            thread.join(10)
            assert not thread.is_alive()


def test_shutdown_before_and_after_serving_returns_at_once() -> None:
    """And, as in the stdlib, makes the next serve_forever() return at once, also on a closed server."""
    server = compat.ThreadingTCPServer(LOOPBACK, Echo)
    server.shutdown()
    server.serve_forever()
    thread = start(server)
    server.shutdown()
    thread.join(10)
    server.shutdown()
    server.server_close()
    server.serve_forever()


def test_shutdown_from_a_plain_handler_returns_and_ends_serving() -> None:
    """Where the stdlib deadlocks: the serving thread cannot wait for itself."""

    def handler(request: Any, _: Any, server: Any) -> None:
        server.shutdown()
        request.sendall(b"bye")

    server: Any = compat.TCPServer(LOOPBACK, handler)
    with server, socket.create_connection(server.server_address, timeout=10) as client:
        server.serve_forever(30)
        assert client.recv(10) == b"bye"


def test_several_threads_shut_down_at_once() -> None:
    """None of them is left waiting."""
    with compat.ThreadingTCPServer(LOOPBACK, Echo) as server:
        thread = start(server)
        callers = [threading.Thread(target=server.shutdown) for _ in range(10)]
        for caller in callers:
            caller.start()
        for caller in [*callers, thread]:
            caller.join(10)
            assert not caller.is_alive()


def test_several_threads_serve_at_once() -> None:
    """As the stdlib's programs that want more acceptors do; one shutdown ends them all."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    with server:
        threads = [threading.Thread(target=server.serve_forever, args=(30,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        # One that began after shutdown() would go on, as with the stdlib.
        wait_until(lambda: len(server._compat_loops) == 3)
        for _ in range(10):
            with socket.create_connection(server.server_address, timeout=10) as client:
                client.sendall(b"abc")
                assert client.recv(10) == b"ABC"
        server.shutdown()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_serve_forever_is_interrupted_while_a_handler_is_blocked() -> None:
    """A threaded handler that waits for its client does not delay shutdown()."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    with server:
        thread = start(server)
        with socket.create_connection(server.server_address, timeout=10) as client:
            client.sendall(b"abc")
            assert client.recv(10) == b"ABC"
            assert seconds(server.shutdown) < POLL_SECONDS / 2
        thread.join(10)


def test_an_idle_server_does_not_wake_up() -> None:
    """Not even every poll interval, as nobody has overridden service_actions."""
    with compat.ThreadingTCPServer(LOOPBACK, Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.001,))
        thread.start()
        before = cpu_and_switches()
        time.sleep(0.3)  # the time in which nothing is to happen
        cpu, switches = (now - then for now, then in zip(cpu_and_switches(), before, strict=True))
        server.shutdown()
        thread.join()
    assert switches < 100
    assert cpu < 0.1


def cpu_and_switches() -> tuple[float, int]:
    """What this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_nvcsw


@pytest.mark.parametrize("how", ["server_close", "socket.close", "socket.shutdown"])
def test_closing_while_serving_does_not_spin(how: str) -> None:
    """The stdlib's loop uses a whole processor then; ours waits for shutdown()."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    thread = start(server)
    connection = socket.create_connection(server.server_address, timeout=10)
    connection.sendall(b"abc")
    assert connection.recv(10) == b"ABC"
    connection.close()
    closing = {
        "server_close": server.server_close,
        "socket.close": server.socket.close,
        "socket.shutdown": lambda: server.socket.shutdown(socket.SHUT_RDWR),
    }
    closing[how]()
    before = cpu_and_switches()
    time.sleep(0.3)  # the time in which nothing is to happen
    cpu, _ = (now - then for now, then in zip(cpu_and_switches(), before, strict=True))
    assert thread.is_alive()
    server.shutdown()
    thread.join(10)
    server.server_close()
    assert cpu < 0.15


def test_a_listener_that_lives_on_in_a_duplicate_is_not_watched_any_more() -> None:
    """A child or another server may hold it; what arrives there is not ours to take."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    address = server.server_address
    other = server.socket.dup()
    thread = start(server)
    server.server_close()
    assert os.get_blocking(other.fileno())
    with socket.create_connection(address, timeout=10) as client, other:
        accepted, _ = other.accept()
        with accepted:
            accepted.sendall(b"other")
        assert client.recv(10) == b"other"
        before, _ = cpu_and_switches()
        with socket.create_connection(address, timeout=10):
            time.sleep(0.2)  # the time in which nothing is to happen
        assert cpu_and_switches()[0] - before < 0.1
    server.shutdown()
    thread.join(10)


def test_exceptions_of_signal_handlers_come_out() -> None:
    """Whatever they raise, and at whatever moment of the loop."""
    import signal

    class Stop(Exception):  # noqa: N818  # a program's own way to stop
        pass

    def stop(*_: Any) -> None:
        raise Stop

    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        with compat.ThreadingTCPServer(LOOPBACK, Echo) as server:
            for delay in (0.0, 0.001, 0.01, 0.05):
                main = threading.main_thread().ident
                assert main is not None
                timer = threading.Timer(delay, signal.pthread_kill, (main, signal.SIGUSR1))
                with pytest.raises(Stop):
                    _serve_for_ever(server, timer)
                timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def _serve_for_ever(server: Any, timer: threading.Timer) -> None:
    timer.start()
    while True:
        server.serve_forever(30)


def test_the_loop_is_made_by_serve_forever() -> None:
    """Not before: programs fork and daemonise between __init__ and serve_forever."""
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    with compat.ThreadingTCPServer(LOOPBACK, Echo) as server:
        assert len(list(descriptors.iterdir())) == before + 1
        thread = start(server)
        assert len(list(descriptors.iterdir())) > before + 1
        server.shutdown()
        thread.join()
    assert len(list(descriptors.iterdir())) == before


def test_requests_are_answered_up_to_the_last_moment() -> None:
    """What a batch has taken when shutdown comes is handed over, not forgotten."""
    answers: queue.Queue[bytes] = queue.Queue()

    def handler(request: Any, _: Any, server: Any) -> None:
        answers.put(request[0])
        server._BaseServer__shutdown_request = True

    with compat.ThreadingUDPServer(LOOPBACK, handler) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(3):
                client.sendto(b"x", server.server_address)
                server.serve_forever(30)
        assert [answers.get(timeout=10) for _ in range(3)] == [b"x"] * 3
