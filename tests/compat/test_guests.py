"""A server as a guest in somebody's program, which notices what is left in its log, ports, threads and sockets."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, ask, connect, echo, serving
from tests.kit.programs import environment, python
from tests.kit.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

FIRST_IMPORT = """
import _thread, socket
done = _thread.allocate_lock()
done.acquire()

def run():
    import threading  # until Python 3.12 this makes it the main thread
    import compat
    server = compat.ThreadingTCPServer(("127.0.0.1", 0), lambda request, *_: request.sendall(b"abc"))
    def ask():
        with socket.create_connection(server.server_address, 20) as client:
            print(client.recv(10))
        server.shutdown()
    threading.Thread(target=ask, daemon=True).start()
    server.serve_forever()
    server.server_close()
    done.release()

_thread.start_new_thread(run, ())
done.acquire(timeout=20)
"""


def test_threading_may_be_imported_by_any_thread_first(tmp_path: Path) -> None:
    """As where Python is embedded: signals belong to the interpreter's main thread, whatever `threading` calls it."""
    script = tmp_path / "program.py"
    script.write_text(FIRST_IMPORT)
    assert python("-S", script).stdout == "b'abc'\n"


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_is_dropped_frees_its_port(kind: str) -> None:
    """Without server_close(), by counting references, as in the stdlib."""
    server_class = type("Server", (getattr(compat, kind),), {"allow_reuse_address": True})
    server: Any = server_class(LOOPBACK, echo)
    address = server.server_address
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert ask(server, b"abc") == b"ABC"
    server.shutdown()
    thread.join()
    pool = getattr(server, "_compat_pool", ())
    wait_until(lambda: len(pool) == 0)  # the thread of the request has it until its very end
    del server, thread
    server_class(address, echo).server_close()


def test_the_loop_says_nothing_in_the_log_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """A program that logs everything knows nothing of our loop; its own loops are told as before."""
    with caplog.at_level(logging.DEBUG):
        with serving(compat.ThreadingTCPServer(LOOPBACK, echo)) as server:
            assert ask(server, b"abc") == b"ABC"
        assert caplog.messages == []


def lend(listener: socket.socket) -> Any:
    """A server of somebody else's listener."""
    server: Any = compat.TCPServer(LOOPBACK, echo, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.fromfd(listener.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    server.server_address = listener.getsockname()
    return server


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("others", [0, 1, 2])
def test_a_listener_goes_back_as_it_came(blocking: bool, others: int) -> None:
    """Also where several serve it, and the first or the last of them goes."""
    with socket.create_server(LOOPBACK) as listener:
        listener.setblocking(blocking)
        servers = [lend(listener) for _ in range(others + 1)]
        threads = [threading.Thread(target=server.serve_forever) for server in servers]
        for thread in threads:
            thread.start()
        for server, thread in zip(servers, threads, strict=True):
            assert ask(server, b"abc") == b"ABC"
            assert not os.get_blocking(listener.fileno())
            server.shutdown()
            thread.join()
            server.server_close()
        assert os.get_blocking(listener.fileno()) is blocking


def test_a_listener_that_another_process_gives_back_does_not_block_us() -> None:
    """The setting belongs to the socket, which all share that were forked."""
    with serving(compat.TCPServer(LOOPBACK, echo)) as server:
        for _ in range(2):
            assert ask(server, b"abc") == b"ABC"
            os.set_blocking(server.fileno(), True)
        with connect(server) as client:
            client.sendall(b"abc")
            assert client.recv(10) == b"ABC"
            assert not os.get_blocking(server.fileno())


PATCHED = """
import select, selectors, threading, _threading_local
for module, names in (select, ("poll", "epoll")), (selectors, ("PollSelector", "EpollSelector")):
    for name in names:
        delattr(module, name)
selectors.DefaultSelector = selectors.SelectSelector
threading.local = _threading_local.local  # a Python class, as theirs are

import socket, compat
local = threading.local()
def handler(request, *_):
    request.sendall(request.recv(10).upper() + getattr(local, "left", b""))
    local.left = b" left over"
server = compat.ThreadingTCPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever).start()
for _ in range(3):
    with socket.create_connection(server.server_address, 20) as client:
        client.sendall(b"abc")
        print(b"".join(iter(lambda: client.recv(100), b"")).decode())
server.shutdown()
server.server_close()
"""


def test_what_eventlet_takes_away_is_not_needed(tmp_path: Path) -> None:
    """Its monkey_patch() leaves no select.poll, and neither its threads nor gevent's have what belongs to a thread."""
    script = tmp_path / "program.py"
    script.write_text(PATCHED)
    assert python(script).stdout == "ABC\n" * 3


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()"),
        ("eventlet", "import eventlet; eventlet.monkey_patch()"),
    ],
)
def test_a_program_under_monkey_patching_is_served(kind: str, patch: str, tmp_path: Path) -> None:
    """With the real ones, where they are installed."""
    pytest.importorskip(kind)
    script = tmp_path / "program.py"
    script.write_text(f"{patch}; import threading\n" + PATCHED[PATCHED.index("import socket, compat") :])
    assert python("-W", "ignore", script).stdout == "ABC\n" * 3


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare(1)")
def test_sigterm_ends_a_program_that_is_pid_1(tmp_path: Path) -> None:
    """As in a container, where the kernel ignores what kills others: pid_namespaces(7)."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nprint('alive')\n"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "compat", str(script)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
