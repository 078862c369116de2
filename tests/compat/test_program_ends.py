"""How programs under `python -m compat` end: signals, idle connections, descriptors that run out, children."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit.programs import PROGRAMS, line_of, python, started, wait_until_asleep
from tests.kit.sockets import connect
from tests.kit.waiting import wait_until

# How a program ends.


def test_sigterm_drains() -> None:
    """The answer under way is given, an idle client is let go after the grace, the program ends normally."""
    program = ["-m", "compat", "--graceful-timeout", "2", PROGRAMS / "echo_server.py"]
    with started(*program) as process:
        port, module = line_of(process)
        assert module == "compat"
        with connect(int(port)) as busy, connect(int(port)) as idle:
            idle.sendall(b"abc")
            assert idle.recv(100) == b"ABC"
            busy.sendall(b"slow")
            wait_until_sent(busy)
            process.send_signal(signal.SIGTERM)
            assert busy.recv(100) == b"SLOW"
            assert idle.recv(100) == b""
        assert process.wait(10) == 0
        assert line_of(process) == ["ended"]


def wait_until_sent(client: socket.socket) -> None:
    """Wait until the other side has received what the client sent."""
    wait_until(lambda: not any(fcntl.ioctl(client, termios.TIOCOUTQ, b"\0" * 4)))


def test_sigterm_ends_a_program_that_serves_in_a_thread() -> None:
    """SystemExit is raised in its main thread."""
    with started("-m", "compat", PROGRAMS / "echo_server.py", "where=thread") as process:
        port, _ = line_of(process)
        with connect(int(port)) as client:
            client.sendall(b"abc")
            assert client.recv(100) == b"ABC"
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_sigterm_is_handled_as_long_as_it_may_come_twice(tmp_path: Path) -> None:
    """A second one, which `timeout` sends, would kill a program that has drained sooner."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, os, signal, socketserver, time\n"
        "class Server(socketserver.TCPServer):\n"
        "    def service_actions(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "before = time.monotonic()\n"
        "atexit.register(lambda: print(time.monotonic() - before, flush=True))\n"
        "with Server(('127.0.0.1', 0), None) as server:\n"
        "    server.serve_forever(0.01)\n"
    )
    with started("-m", "compat", script) as process:
        assert float(line_of(process)[0]) >= 0.1
        assert process.wait(20) == 0


def test_sigterm_ends_a_program_whose_main_thread_has_ended(tmp_path: Path) -> None:
    """No SystemExit can be raised there: the interpreter waits for the thread that serves."""
    script = tmp_path / "script.py"
    script.write_text(
        "import socketserver, threading, time\n"
        "server = socketserver.TCPServer(('127.0.0.1', 0), None)\n"
        "class Told(threading.Thread):\n"
        "    def run(self):\n"
        "        while threading.main_thread().is_alive():\n"
        "            time.sleep(0.001)\n"
        "        print('ended', flush=True)\n"
        "Told().start()\n"
        "threading.Thread(target=server.serve_forever).start()\n"
    )
    with started("-m", "compat", script) as process:
        assert line_of(process) == ["ended"]
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is None or process.stderr.read() == ""


def test_sigterm_without_a_server_kills_as_always(tmp_path: Path) -> None:
    """There is nothing to drain."""
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with started("-m", "compat", script) as process:
        line_of(process)
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("swapped", [False, True])
def test_ctrl_c_comes_out_of_serve_forever(swapped: bool) -> None:
    """As with the stdlib; idle daemonic handlers, whose clients stay, do not hold up the end."""
    program = [PROGRAMS / "echo_server.py", "daemon_threads=True"]
    with started(*(["-m", "compat"] if swapped else []), *program) as process:
        port, _ = line_of(process)
        with connect(int(port)) as client:
            client.sendall(b"abc")
            assert client.recv(100) == b"ABC"
            wait_until_asleep(process.pid)
            process.send_signal(signal.SIGINT)
            assert line_of(process) == ["interrupted"]
            assert line_of(process) == ["ended"]
            assert process.wait(20) == 0


def test_exit_does_not_wait_for_idle_connections_of_daemon_threads() -> None:
    """A hundred clients that keep their connections."""
    program = ["-m", "compat", PROGRAMS / "echo_server.py", "daemon_threads=True", "where=brief"]
    with started(*program) as process, ExitStack() as stack:
        port, _ = line_of(process)
        for _ in range(100):
            client = stack.enter_context(connect(int(port)))
            client.sendall(b"abc")
            assert client.recv(100) == b"ABC"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0


# The system's limits.


def test_without_descriptors_it_neither_spins_nor_dies() -> None:
    """The stdlib uses most of a processor; clients in the backlog are served as soon as others leave."""
    arguments = ["descriptors=40", "request_queue_size=200"]
    with started("-m", "compat", PROGRAMS / "echo_server.py", *arguments) as process, ExitStack() as stack:
        port, _ = line_of(process)
        clients = [stack.enter_context(connect(int(port))) for _ in range(60)]
        for client in clients:
            client.sendall(b"abc")
        assert process.stderr is not None
        assert process.stderr.readline().count("cannot get requests ([Errno 24] Too many open files)") == 1
        wait_until(lambda: sum(map(has_answer, clients)) > 10)
        before = cpu_of(process.pid)
        time.sleep(0.5)  # the time that is measured
        assert cpu_of(process.pid) - before < 0.2
        answered = [client for client in clients if has_answer(client)]
        assert 10 < len(answered) < 40
        for client in clients:
            if client not in answered:
                answered.pop().close()
                assert client.recv(100) == b"ABC"
                answered.append(client)
        process.kill()
        assert "cannot get requests" not in process.stderr.read()


def has_answer(client: socket.socket) -> bool:
    """Whether an answer has arrived."""
    return bool(select.select([client], [], [], 0)[0])


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_forking_servers_reap_their_own_children() -> None:
    """Even at max_children; shutdown() in a child ends; and servers may be daemonised after __init__."""
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]  # "... is multi-threaded", its own doing
    ended = python(*warnings, "-m", "compat", PROGRAMS / "forking.py")
    assert ended.stdout.splitlines() == ["ForkingTCPServer fine", "ForkingUDPServer fine", "child"]
    assert ended.stderr == ""


FORKED_AND_THREADED = """
import socketserver, threading

class Server(socketserver.ForkingTCPServer):
    def process_request(self, request, client_address):
        super().process_request(request, client_address)

threading.Thread(target=threading.Event().wait, daemon=True).start()
server = Server(("127.0.0.1", 0), lambda request, *_: request.sendall(b"child"))
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("swapped", [False, True])
def test_a_warning_that_is_an_error_does_not_end_a_forking_server(swapped: bool, tmp_path: Path) -> None:
    """Python 3.15 raises that the program has threads; and telling of that, with a line of the program, may not."""
    (tmp_path / "script.py").write_text(FORKED_AND_THREADED)
    with started("-W", "error", *(["-m", "compat"] if swapped else []), tmp_path / "script.py") as process:
        (port,) = line_of(process)
        for _ in range(3):
            with connect(int(port)) as client, contextlib.suppress(ConnectionResetError):
                assert client.recv(10) in {b"child", b""}  # the parent closes what the child is about to answer
        assert process.poll() is None
