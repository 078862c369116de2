"""`python -m asyncserver`, in processes of its own: as a person types it."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from asyncserver import cli
from asyncserver.options import make_parser, read
from tests.serverkit import PATIENCE, Program, authority, client_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import asyncio
import asyncserver

async def handler(source):
    if isinstance(source, asyncserver.Datagram):
        return source.data[::-1]
    async for data in source:
        await source.send(data[::-1])

class Namespace:
    inner = handler

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data[::-1])

protocol = asyncserver.from_protocol(Echo)

def synchronous(stream):
    pass

number = 7
"""


LEGACY = """
import asyncio, socketserver, threading

class Reverse(socketserver.StreamRequestHandler):
    most = running = 0
    lock = threading.Lock()

    def handle(self):
        cls = type(self)
        with self.lock:
            cls.running += 1
            cls.most = max(cls.most, cls.running)
        for line in self.rfile:
            self.wfile.write(b"%s %d\\n" % (line.strip()[::-1], cls.most))
        with self.lock:
            cls.running -= 1

class Answer(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])

class Either(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(data[::-1], self.client_address)
        else:
            self.request.sendall(self.request.recv(99)[::-1])

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data[::-1])

class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, bytearray(99)
    def get_buffer(self, hint):
        return self.buffer
    def buffer_updated(self, nbytes):
        self.transport.write(bytes(self.buffer[:nbytes])[::-1])

class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, address):
        self.transport.sendto(data[::-1], address)

def report(exception, source):
    print("reported", exception, type(source).__name__, flush=True)

async def fail(source):
    raise ValueError("on purpose")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "legacy.py").write_text(LEGACY)
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    return tmp_path


def free_port() -> int:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        port: int = tcp.getsockname()[1]
        return port


def command(folder: Path, *arguments: str, **environment: str) -> Program:
    return Program(["-W", "error", "-m", "asyncserver", *arguments], folder, **environment)


def internet_address(program: Program, server: str = "StreamServer") -> tuple[str, int]:
    """Where a server of the program listens, as it has logged it."""
    program.wait_for(f"{server} serving on (")
    found = re.search(server + r" serving on \('(.*?)', (\d+)", program.errors)
    assert found is not None
    return found[1], int(found[2])


def ask(address: Any, kind: int = socket.SOCK_STREAM, question: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, kind) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(question)
        return client.recv(99)


# -- what it does


def test_main_job_is_an_upper_casing_echo_on_tcp_and_udp(folder: Path) -> None:
    """Without arguments, but for the port, which others may have: 127.0.0.1:8080 stands in for a free one."""
    port = free_port()
    script = f"import sys, asyncserver.cli as cli; cli._DEFAULT_ADDRESS = '127.0.0.1:{port}'; sys.exit(cli.main([]))"
    with Program(["-W", "error", "-c", script], folder) as program:
        program.wait_for("DatagramServer serving on")
        assert ask(("127.0.0.1", port)) == b"HELLO"
        assert ask(("127.0.0.1", port), socket.SOCK_DGRAM) == b"HELLO"
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
        assert f"echo on 127.0.0.1:{port}, TCP and UDP. Ctrl-C ends it." in program.output
        assert f"nc 127.0.0.1 {port}" in program.output
        assert "Traceback" not in program.errors


def test_the_main_jobs_address() -> None:
    """What the README and the Makefile tell."""
    assert cli._DEFAULT_ADDRESS == "127.0.0.1:8080"


def test_the_line_that_tells_how_to_try_it_works(folder: Path) -> None:
    """The Python one-liner that is printed asks the server, and prints its answer."""
    port = free_port()
    script = f"import sys, asyncserver.cli as cli; cli._DEFAULT_ADDRESS = '127.0.0.1:{port}'; sys.exit(cli.main([]))"
    with Program(["-W", "error", "-c", script], folder) as program:
        program.wait_for("print(s.recv(99))'\n")
        (line,) = [line for line in program.output.splitlines() if "python3 -c" in line]
        one_liner = line.partition("python3 -c '")[2].removesuffix("'")
        with Program(["-c", one_liner], folder) as client:
            assert client.wait() == 0, client.errors
            assert client.output == "b'HELLO'\n"


@pytest.mark.parametrize("name", ["app:handler", "app:Namespace.inner"])
def test_handler_is_loaded_from_the_current_folder(folder: Path, name: str) -> None:
    """On several addresses of every kind; SIGTERM ends it with status 0."""
    path = folder / "app.sock"
    places = ["--tcp", "127.0.0.1:0", "--tcp", "localhost:0", "--udp", "127.0.0.1:0"]
    with command(folder, name, *places, "--unix", str(path), "--unix-mode", "600") as program:
        assert ask(internet_address(program, "DatagramServer"), socket.SOCK_DGRAM) == b"olleh"
        ports = re.findall(r"StreamServer serving on .*\('127.0.0.1', (\d+)\)", program.errors)
        assert [ask(("127.0.0.1", int(port))) for port in ports] == [b"olleh"] * 2
        assert ask(str(path)) == b"olleh"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors
    assert not path.exists()


def test_adapter_is_taken_as_a_handler(folder: Path) -> None:
    """What from_protocol() returns."""
    with command(folder, "app:protocol", "--tcp", "127.0.0.1:0") as program:
        address = internet_address(program)
        assert ask(address) == b"olleh"


def test_empty_host_is_every_interface(folder: Path) -> None:
    """:PORT listens on IPv4 and IPv6, [::1]:PORT on that alone."""
    with command(folder, "app:handler", "--tcp", ":0", "--udp", "[::1]:0") as program:
        _, port = internet_address(program)
        assert ask(("127.0.0.1", port)) == b"olleh"
        with socket.create_connection(("::1", port), PATIENCE) as client:
            client.sendall(b"six")
            assert client.recv(9) == b"xis"
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(internet_address(program, "DatagramServer"))
            client.send(b"six")
            assert client.recv(9) == b"xis"


def certificates(folder: Path) -> None:
    """Write the server's chain and key, and the authority that signed them, into files."""
    certificate = authority().issue_cert("127.0.0.1", "localhost")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "chain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    authority().cert_pem.write_to_path(str(folder / "ca.pem"))


@pytest.mark.parametrize("files", [["--certfile", "chain.pem", "--keyfile", "key.pem"], ["--certfile", "both.pem"]])
def test_tls(folder: Path, files: list[str]) -> None:
    """With a certificate --tcp speaks TLS."""
    certificates(folder)
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        address = internet_address(program)
        with (
            socket.create_connection(address, PATIENCE) as plain,
            client_context().wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"secret")
            assert client.recv(9) == b"terces"


def test_client_certificates(folder: Path) -> None:
    """With --client-ca who has no certificate is refused, who has one is served."""
    certificates(folder)
    files = ["--certfile", "both.pem", "--client-ca", "ca.pem"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        address = internet_address(program)
        without = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        with_one = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        authority().issue_cert("client").configure_cert(with_one)
        answers = []
        for context in (without, with_one):
            with (
                socket.create_connection(address, PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as client,
            ):
                try:
                    client.sendall(b"secret")
                    answers.append(client.recv(9))
                except OSError:
                    answers.append(b"")
        assert answers == [b"", b"terces"]


def test_limits_reach_the_server(folder: Path) -> None:
    """--max-connections-per-host and --idle-timeout do what they say."""
    limits = ["--max-connections-per-host", "1", "--idle-timeout", "0.2", "--max-connections", "5"]
    limits += ["--drain-timeout", "1", "--max-pending", "5", "--loop", "asyncio", "--log-level", "debug"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *limits) as program:
        address = internet_address(program)
        with socket.create_connection(address, PATIENCE) as first:
            first.sendall(b"one")
            assert first.recv(9) == b"eno"
            with socket.create_connection(address, PATIENCE) as second:
                assert second.recv(9) == b""
            assert first.recv(9) == b""  # idle
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0


def test_help_is_worth_reading(folder: Path) -> None:
    """-h tells every option, with examples and what the exit status means, within a terminal's width."""
    with command(folder, "-h", COLUMNS="100") as program:
        assert program.wait() == 0
        text = program.output
    for option in ("--tcp", "--udp", "--unix", "--certfile", "--max-connections", "--idle-timeout", "--loop"):
        assert option in text
    assert "examples:" in text
    assert re.search(r"exit status:\n  0  .*\n  1  .*\n  2  ", text)
    assert "async def handler(stream)" in text
    assert max(map(len, text.splitlines())) <= 120
    for line in text.splitlines():
        if line.startswith("  python -m asyncserver "):  # an example is a command line that parses
            options = read(make_parser("7"), line.split()[3:], {})
            assert options.tcp or options.udp or options.unix


# -- classes written for others


@pytest.mark.parametrize("name", ["Protocol", "Buffered", "Either", "Reverse"])
def test_class_for_streams_is_hosted(folder: Path, name: str) -> None:
    """A handler class of socketserver's, or a protocol: as it is, by its name alone."""
    with command(folder, f"legacy:{name}", "--unix", "x.sock", "--tcp", "127.0.0.1:0") as program:
        address = internet_address(program)
        program.wait_for("serving on x.sock")
        assert b"olleh" in ask(address, question=b"hello\n")
        assert b"olleh" in ask(str(folder / "x.sock"), question=b"hello\n")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors


@pytest.mark.parametrize("name", ["Datagrams", "Either", "Answer"])
def test_class_for_datagrams_is_hosted(folder: Path, name: str) -> None:
    """The same with --udp and --unix-datagram."""
    with command(folder, f"legacy:{name}", "--udp", "127.0.0.1:0", "--unix-datagram", "x.sock") as program:
        assert ask(internet_address(program, "DatagramServer"), socket.SOCK_DGRAM) == b"olleh"
        program.wait_for("serving on x.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.bind(str(folder / "client.sock"))
            client.connect(str(folder / "x.sock"))
            client.send(b"hello")
            assert client.recv(99) == b"olleh"
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors


@pytest.mark.parametrize(("threads", "most"), [(["--threads", "1"], b"olleh 1\n"), ([], b"olleh 2\n")])
def test_threads_bound_hosted_handlers(folder: Path, threads: list[str], most: bytes) -> None:
    """With one thread the second client waits until the first has left."""
    with command(folder, "legacy:Reverse", "--tcp", "127.0.0.1:0", *threads) as program:
        address = internet_address(program)
        with socket.create_connection(address, PATIENCE) as first:
            first.sendall(b"hello\n")
            assert first.recv(99) == b"olleh 1\n"
            with socket.create_connection(address, PATIENCE) as second:
                second.sendall(b"hello\n")
                if threads:
                    first.close()
                assert second.recv(99) == most


def test_hosted_handlers_in_workers(folder: Path) -> None:
    """Each worker has threads of its own."""
    with command(folder, "legacy:Reverse", "--tcp", "127.0.0.1:0", "--workers", "2") as program:
        program.wait_for("2 workers serve on (")
        (port,) = re.findall(r"workers serve on \('127.0.0.1', (\d+)\)", program.errors)
        assert b"olleh" in ask(("127.0.0.1", int(port)), question=b"hello\n")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def test_on_error_is_called(folder: Path) -> None:
    """--on-error names a function that gets what a handler raised, and the stream."""
    with command(folder, "legacy:fail", "--tcp", "127.0.0.1:0", "--on-error", "legacy:report") as program:
        assert ask(internet_address(program)) == b""
        program.wait_for("reported on purpose Stream")


CHANGING = """
async def handler(stream):
    await stream.receive()
    await stream.send(b"{answer}")
    raise ValueError("{answer}")

def report(exception, source):
    print("reported", exception, flush=True)
"""


def test_new_workers_have_new_code(folder: Path) -> None:
    """After SIGHUP, for whatever the command line names: the supervisor has imported none of it."""
    (folder / "changing.py").write_text(CHANGING.format(answer="old"))
    arguments = ["changing:handler", "--on-error", "changing:report", "--unix", "x.sock", "--workers", "2"]
    arguments += ["--log-level", "debug"]
    with command(folder, *arguments, PYTHONDONTWRITEBYTECODE="1") as program:
        program.wait_for("2 workers serve on ")
        assert ask(str(folder / "x.sock")) == b"old"
        program.wait_for("reported old")
        (folder / "changing.py").write_text(CHANGING.format(answer="new"))
        program.process.send_signal(signal.SIGHUP)
        program.wait_for(" ended with status 0 while it drained", times=2)
        assert ask(str(folder / "x.sock")) == b"new"
        program.wait_for("reported new")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0


# -- sockets that others have bound


def test_inherited_descriptors(folder: Path) -> None:
    """fd:N as an address: a listening TCP socket, and a bound UDP one."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        numbers = tcp.fileno(), udp.fileno()
        arguments = ["app:handler", "--tcp", f"fd:{numbers[0]}", "--udp", f"fd:{numbers[1]}"]
        with Program(["-m", "asyncserver", *arguments], folder, numbers) as program:
            assert ask(tcp.getsockname()) == b"olleh"
            assert ask(udp.getsockname(), socket.SOCK_DGRAM) == b"olleh"
            program.process.send_signal(signal.SIGTERM)
            assert program.wait() == 0


# -- the environment


def test_environment_is_heard(folder: Path) -> None:
    """A whole command line in variables; what is typed wins."""
    variables = {
        "ASYNCSERVER_HANDLER": "app:handler",
        "ASYNCSERVER_TCP": "127.0.0.1:0",
        "ASYNCSERVER_UNIX": "a.sock 'b c.sock'",
        "ASYNCSERVER_UNIX_MODE": "777",
    }
    with command(folder, "--unix-mode", "600", **variables) as program:
        assert ask(internet_address(program)) == b"olleh"
        program.wait_for("serving on b c.sock")
        assert ask(str(folder / "b c.sock")) == b"olleh"
        assert stat.S_IMODE((folder / "a.sock").stat().st_mode) == 0o600


# -- --check


def test_check_tells_what_would_be_served(folder: Path) -> None:
    """Handler, certificates, addresses, each in a line; nothing stays, and nothing is served."""
    certificates(folder)
    arguments = ["--tcp", "127.0.0.1:0", "--udp", "[::1]:0", "--unix", "x.sock", "--certfile", "both.pem", "--check"]
    for workers in ("1", "2"):
        with command(folder, "app:handler", *arguments, "--workers", workers) as program:
            assert program.wait() == 0
            assert program.errors == ""
        lines = [
            r"handler  app:handler",
            r"TLS      both\.pem: localhost; until \d{4}-\d\d-\d\d \d\d:\d\d UTC",
            r"stream   127\.0\.0\.1:\d+",
            r"stream   x\.sock",
            r"datagram \[::1\]:\d+",
            r"all of it can be served",
        ]
        assert re.fullmatch("\n".join(lines) + "\n", program.output)
        assert not (folder / "x.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["app:handler", "--unix", "app.py"], 1, "exists and is not a socket"),
        (["broken:handler", "--tcp", ":0"], 1, "no_such_module_at_all"),
        (["app:missing", "--tcp", ":0", "--workers", "2"], 2, "module 'app' has no 'missing'"),
        (["app:handler", "--tcp", ":0", "--certfile", "app.py"], 2, "no usable certificate and key in app.py"),
    ],
)
def test_check_finds_what_is_wrong(folder: Path, arguments: list[str], status: int, message: str) -> None:
    """With the status that serving would have had."""
    with command(folder, *arguments, "--check") as program:
        assert program.wait() == status
        assert message in program.errors
        assert "can be served" not in program.output


# -- logs


def test_json_logs(folder: Path) -> None:
    """--log-json: every line on standard error is an object; a failure has its peer, server and traceback in it."""
    with command(folder, "legacy:fail", "--unix", "x.sock", "--log-json", "--log-connections") as program:
        program.wait_for("serving on x.sock")
        with socket.socket(socket.AF_UNIX) as client:  # which the handler closes without hearing it
            client.settimeout(PATIENCE)
            client.connect(str(folder / "x.sock"))
            assert client.recv(9) == b""
        program.wait_for("connection failed")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    records = [json.loads(line) for line in program.errors.splitlines()]
    assert {record["server"] for record in records if "server" in record} == {"unix:x.sock"}
    (failure,) = [record for record in records if record["level"] == "ERROR"]
    assert (failure["logger"], failure["peer"], failure["outcome"]) == ("asyncserver", "unix", "failed")
    assert failure["exception"].endswith("ValueError: on purpose")
    (line,) = [record for record in records if record["logger"] == "asyncserver.connection"]
    assert (line["level"], line["peer"], line["outcome"]) == ("INFO", "unix", "failed")
    assert line["message"].startswith("unix: connection failed after ")


def test_lines_about_connections_are_off_by_default(folder: Path) -> None:
    """Servers of thousands of short connections would drown in them."""
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0") as program:
        assert ask(internet_address(program)) == b"olleh"
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "connection completed" not in program.errors


# -- several certificates


def test_several_certificates(folder: Path) -> None:
    """--certfile and --keyfile in pairs, one minimum version for all."""
    certificates(folder)
    authority().issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(str(folder / "other.pem"))
    files = ["--certfile", "chain.pem", "--keyfile", "key.pem", "--certfile", "other.pem", "--keyfile", "other.pem"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files, "--tls-min", "1.3") as program:
        address = internet_address(program)
        for name in ("localhost", "other.example"):
            with (
                socket.create_connection(address, PATIENCE) as plain,
                client_context().wrap_socket(plain, server_hostname=name) as client,  # which checks the name
            ):
                client.sendall(b"secret")
                assert client.recv(9) == b"terces"
                assert client.version() == "TLSv1.3"


def test_optional_client_certificates(folder: Path) -> None:
    """--client-cert optional lets in who has none."""
    certificates(folder)
    files = ["--certfile", "both.pem", "--client-ca", "ca.pem", "--client-cert", "optional"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        address = internet_address(program)
        with (
            socket.create_connection(address, PATIENCE) as plain,
            client_context().wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"secret")
            assert client.recv(9) == b"terces"


# -- what it says when something is wrong

WRONG: list[tuple[list[str], str]] = [
    (["handler"], "argument MODULE:HANDLER: expected MODULE:NAME, such as app:handler; got 'handler'"),
    (["app:"], "expected MODULE:NAME"),
    (["nowhere:handler", "--tcp", ":0"], "there is no module 'nowhere' in the current folder or installed"),
    (["no.where:handler", "--tcp", ":0"], "there is no module 'no.where'"),
    (["app:missing", "--tcp", ":0"], "module 'app' has no 'missing'"),
    (["app:Namespace.missing", "--tcp", ":0"], "module 'app' has no 'Namespace.missing'"),
    (["app:handler"], "say where to serve app:handler: --tcp HOST:PORT, --udp HOST:PORT or --unix PATH"),
    (["app:synchronous", "--tcp", ":0"], "expects a coroutine function, `async def handler(stream)`; got synchronous"),
    (["app:number", "--udp", ":0"], "expects a coroutine function, `async def handler(datagram)`; got 7"),
    (["app:handler", "--tcp", "localhost"], "expected HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080"),
    (["app:handler", "--tcp", "localhost:http"], "expected HOST:PORT"),
    (["app:handler", "--tcp", "::1:80"], "write an IPv6 address in brackets, [::1]:80; got '::1:80'"),
    (["app:handler", "--tcp", ":70000"], "argument --tcp: expected a port from 0 to 65535; got ':70000'"),
    (["app:handler", "--tcp", ":0", "--udp", "nonsense"], "expected HOST:PORT"),
    (
        ["app:handler", "--tcp", ":0", "--udp", ":0", "--max-pending", "0"],
        "argument --max-pending: expected a whole number, at least 1; got '0'",
    ),
    (
        ["app:handler", "--unix", "x", "--unix-mode", "999"],
        "argument --unix-mode: expected permissions in octal, such as 660; got '999'",
    ),
    (
        ["app:handler", "--tcp", ":0", "--max-connections", "0"],
        "argument --max-connections: expected a whole number, at least 1; got '0'",
    ),
    (["app:handler", "--tcp", ":0", "--max-connections", "x"], "expected a whole number, at least 1; got 'x'"),
    (["app:handler", "--tcp", ":0", "--idle-timeout", "-1"], "expected a number of seconds, more than 0; got '-1'"),
    (["app:handler", "--tcp", ":0", "--certfile", "missing.pem"], "No such file or directory: 'missing.pem'"),
    (["app:handler", "--tcp", ":0", "--certfile", "app.py"], "no usable certificate and key in app.py"),
    (["app:handler", "--tcp", ":0", "--keyfile", "app.py"], "TLS needs --certfile"),
    (
        ["app:handler", "--tcp", ":0", "--certfile", "a", "--certfile", "b", "--keyfile", "a"],
        "give as many --keyfile as --certfile, or none: got 1 for 2",
    ),
    (["legacy:Answer", "--udp", ":0", "--unix", "x"], "legacy:Answer handles datagrams: it can be served with --udp"),
    (["legacy:Datagrams", "--tcp", ":0"], "legacy:Datagrams handles datagrams"),
    (["legacy:Reverse", "--tcp", ":0", "--udp", ":0"], "legacy:Reverse handles streams: it can be served with --tcp"),
    (["legacy:Protocol", "--unix-datagram", "x"], "legacy:Protocol handles streams"),
    (["legacy:Protocol", "--tcp", ":0", "--threads", "2"], "--threads is for subclasses of socketserver."),
    (["--threads", "2"], "--threads is for subclasses of socketserver."),
    (["app:handler", "--tcp", ":0", "--on-error", "app:missing"], "module 'app' has no 'missing'"),
    (["--loop", "trio"], "invalid choice: 'trio'"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_told_in_a_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 2, the usage, and one line that names the value and the way out: no traceback, no warning."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    monkeypatch.delitem(sys.modules, "legacy", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    usage, _, line = printed.err.rpartition("python -m asyncserver: error: ")
    assert usage.startswith("usage: python -m asyncserver ")
    assert message in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["app:synchronous", "--tcp", ":0"], 2, "expects a coroutine function"),
        (["app:handler", "--tcp", ":0", "--udp", "nonsense"], 2, "expected HOST:PORT"),
        (["app:handler", "--tcp", "no-such-host.invalid:80"], 1, "does not resolve"),
        (["app:handler", "--tcp", "203.0.113.7:0"], 1, "no interface of this machine has that address"),
        (["app:handler", "--unix", "app.py"], 1, "exists and is not a socket"),
        (["app:handler", "--unix", "missing/app.sock"], 1, "the folder does not exist"),
    ],
)
def test_error_ends_the_process_without_a_traceback(
    arguments: list[str], status: int, message: str, folder: Path
) -> None:
    """1 for an address that cannot be had, 2 for wrong arguments; stderr holds nothing but what helps."""
    with command(folder, *arguments) as program:
        assert program.wait() == status
        assert message in program.errors
        assert program.output == ""
    assert "Traceback" not in program.errors
    assert "Warning" not in program.errors
    assert program.errors.splitlines()[-1].startswith("python -m asyncserver: ")


def test_taken_port_is_told_and_the_other_servers_closed(folder: Path) -> None:
    """One of several addresses is taken: status 1, the line names it, and nothing else is said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        places = ["--tcp", "127.0.0.1:0", "--tcp", f"127.0.0.1:{port}", "--udp", "127.0.0.1:0"]
        with command(folder, "app:handler", *places) as program:
            assert program.wait() == 1
    assert program.errors.startswith("python -m asyncserver: ")
    assert f"127.0.0.1:{port}: it is taken" in program.errors
    assert program.errors.count("\n") == 1


def test_uvloop_asked_for_and_missing_is_told(folder: Path) -> None:
    """Status 1 and a line; no complaint about servers that were not started."""
    script = "import sys; sys.modules['uvloop'] = None; import asyncserver.cli as cli; sys.exit(cli.main(sys.argv[1:]))"
    arguments = ["app:handler", "--tcp", "127.0.0.1:0", "--loop", "uvloop"]
    with Program(["-W", "error", "-c", script, *arguments], folder) as program:
        assert program.wait() == 1
    assert "uvloop" in program.errors
    assert program.errors.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_greeting_before_the_port_is_had(folder: Path, workers: str) -> None:
    """The main job on a port that is taken says that, and nothing about how to try it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        script = f"import sys, asyncserver.cli as cli; cli._DEFAULT_ADDRESS = '{address}'; sys.exit(cli.main())"
        with Program(["-W", "error", "-c", script, "--workers", workers], folder) as program:
            assert program.wait() == 1
    assert program.output == ""
    assert f"{address}: it is taken" in program.errors


def test_error_inside_the_handlers_module_keeps_its_traceback(folder: Path) -> None:
    """A module that fails to import is the user's own bug: there the traceback is what helps."""
    with command(folder, "broken:handler", "--tcp", ":0") as program:
        assert program.wait() == 1
    assert "no_such_module_at_all" in program.errors
    assert "broken.py" in program.errors


def test_main_returns_the_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that calls it, main() runs until the servers are closed; an address that is taken gives 1."""
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["--tcp", f"127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "it is taken" in capsys.readouterr().err


async def test_upper_serves_both_kinds() -> None:
    """The handler of the main job is an ordinary one."""
    handler: Callable[..., Any] = cli.upper
    asyncserver.serve(handler, "127.0.0.1", 0).close()
    asyncserver.serve_datagrams(handler, "127.0.0.1", 0).close()
