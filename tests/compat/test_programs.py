"""Unchanged programs under `python -m compat`, as people start them."""

import ftplib
import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit.programs import PROGRAMS, environment, line_of, python, started
from tests.kit.sockets import connect
from tests.kit.waiting import wait_until

# The programs of a textbook.


@pytest.mark.parametrize(
    ("server", "clients", "answers"),
    [
        ("tcp_server", ["tcp_client_3", "tcp_client_1"], ["CLIENT33333", "CLIENT11111"]),
        ("udp_server", ["udp_client_1", "udp_client_2"], ["CLIENT1111", "CLIENT2222"]),
    ],
)
def test_the_textbooks_programs_run(server: str, clients: list[str], answers: list[str], tmp_path: Path) -> None:
    """Two clients at once, which loop for ever, each get their own answers; only the port is changed."""
    kind = socket.SOCK_STREAM if server.startswith("tcp") else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in (server, *clients):
        text = (PROGRAMS / f"socket10_{name}.py").read_text().replace("8080", str(port))
        (tmp_path / f"{name}.py").write_text(text)
    with ExitStack() as stack:
        devnull = stack.enter_context(Path(os.devnull).open("w"))
        command = [sys.executable, "-m", "compat", str(tmp_path / f"{server}.py")]
        serving = subprocess.Popen(command, env=environment(), stdout=devnull, stderr=devnull)
        stack.callback(serving.wait)
        stack.callback(serving.kill)
        wait_for_port(port, kind)
        running = [stack.enter_context(started(tmp_path / f"{name}.py")) for name in clients]
        for _ in range(200):
            for process, answer in zip(running, answers, strict=True):
                assert line_of(process) == [f"b'{answer}'"]
        for process in running:
            process.kill()


def wait_for_port(port: int, kind: socket.SocketKind) -> None:
    """Wait until somebody has bound it."""

    def bound() -> bool:
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                return probe.connect_ex(("127.0.0.1", port)) == 0
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return True
            return False

    wait_until(bound)


def test_a_stateful_ftp_server_serves_ftplib(tmp_path: Path) -> None:
    """Two sessions at once, each with its own folder, transfers in both directions."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"content" * 10_000)
    with started("-m", "compat", PROGRAMS / "ftp_server.py", tmp_path) as process:
        port = int(line_of(process)[0])
        with ftplib.FTP() as one, ftplib.FTP() as other:
            for session in (one, other):
                session.connect("127.0.0.1", port, timeout=10)
            with pytest.raises(ftplib.error_perm, match="log in first"):
                one.pwd()
            for session in (one, other):
                assert session.login("me", "secret") == "230 welcome, me"
            one.cwd("inner")
            assert (one.pwd(), other.pwd()) == ("/inner", "/")
            received = io.BytesIO()
            one.retrbinary("RETR file", received.write)
            assert received.getvalue() == b"content" * 10_000
            other.mkd("new")
            other.storbinary("STOR new/copy", io.BytesIO(b"stored"))
            assert (other.nlst(), one.nlst()) == (["inner", "new"], ["file"])
        assert (tmp_path / "new" / "copy").read_bytes() == b"stored"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="http.server has --tls-cert from Python 3.14 on")
def test_silent_clients_do_not_stall_http_server_with_tls(
    certfile: Path, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    """Alone it makes each handshake where it accepts, and one client that says nothing stalls it."""
    (tmp_path / "file").write_text("content")
    options = ["--tls-cert", certfile, "--bind", "127.0.0.1", "0"]
    with started("-m", "compat", "-m", "http.server", *options, cwd=tmp_path) as process, ExitStack() as stack:
        words = line_of(process)
        port = words[words.index("port") + 1]
        for _ in range(3):
            stack.enter_context(connect(int(port)))
        plain = stack.enter_context(connect(int(port)))
        client = stack.enter_context(client_context.wrap_socket(plain, server_hostname="localhost"))
        client.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        assert b"".join(iter(lambda: client.recv(1000), b"")).endswith(b"\r\n\r\ncontent")


# How a program sees itself.


@pytest.mark.parametrize("how", ["script", "module"])
def test_main_pickling_and_multiprocessing_are_as_without_us(how: str) -> None:
    """Except for the module that is found under the name socketserver, also in the children."""
    program = ["workers.py"] if how == "script" else ["-m", "workers"]
    theirs = python(*program, "a", "-m", "b", cwd=PROGRAMS)
    ours = python("-m", "compat", *program, "a", "-m", "b", cwd=PROGRAMS)
    assert "'socketserver', '__mp_main__', 'spawn'" in theirs.stdout
    assert "'compat', '__mp_main__', 'spawn'" in ours.stdout
    assert ours.stdout.replace("compat", "socketserver") == theirs.stdout
    assert ours.stdout.endswith("True\n")


def test_tracebacks_arguments_and_exit_codes_are_as_without_us(tmp_path: Path) -> None:
    """None of our frames is shown."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint(sys.argv, sys.path[0], __file__, __spec__ is None or 0)\n"
        "def fail():\n    raise ValueError('x')\n"
        "sys.exit(3) if len(sys.argv) > 1 else fail()\n"
    )
    for arguments in ([], ["--exit", "-m"]):
        theirs = python(script, *arguments, check=False)
        ours = python("-m", "compat", script, *arguments, check=False)
        assert ours.returncode == theirs.returncode
        assert ours.stderr == theirs.stderr
        assert ours.stdout.replace(" 0\n", " True\n") == theirs.stdout


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_folder_or_zip_file_with_a_main_module_can_be_run(packed: bool, tmp_path: Path) -> None:
    """It imports from itself."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "beside.py").write_text("import socketserver\nname = socketserver.__name__\n")
    (folder / "__main__.py").write_text(
        "import sys, beside\nprint(__name__, __package__, __file__, sys.argv, sys.path[0])\nsys.exit(beside.name)\n"
    )
    program = shutil.make_archive(str(folder), "zip", folder) if packed else folder
    theirs = python(program, "x", check=False)
    ours = python("-m", "compat", program, "x", check=False)
    assert ours.stdout == theirs.stdout
    assert (theirs.stderr, ours.stderr) == ("socketserver\n", "compat\n")


def test_a_script_that_is_none_fails_as_without_us(tmp_path: Path) -> None:
    """It shows none of our frames, and exits in the same way."""
    script = tmp_path / "script.py"
    script.write_text("x = (\n")
    for program in (script, tmp_path / "absent.py"):
        theirs = python(program, check=False)
        ours = python("-m", "compat", program, check=False)
        assert ours.returncode == theirs.returncode
        assert ours.stderr.partition(": ")[2] == theirs.stderr.partition(": ")[2]


def test_a_module_of_the_standard_library_can_be_run(tmp_path: Path) -> None:
    """`python -m compat -m http.server`, which then serves on our classes."""
    (tmp_path / "page").write_text("a page")
    arguments = ["-m", "compat", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", tmp_path]
    with started(*arguments) as process:
        assert process.stdout is not None
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found
        with connect(int(found[1])) as client:
            client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.endswith(b"a page")


def test_the_whole_standard_library_is_swapped() -> None:
    """Whatever builds on socketserver and is imported afterwards."""
    program = (
        "import compat; compat.install(); compat.install()\n"
        "import http.server, xmlrpc.server, wsgiref.simple_server, logging.config, socketserver\n"
        "assert socketserver is compat\n"
        "for server in (http.server.ThreadingHTTPServer, xmlrpc.server.SimpleXMLRPCServer,\n"
        "               wsgiref.simple_server.WSGIServer, logging.config.ThreadingTCPServer):\n"
        "    assert issubclass(server, compat.TCPServer), server\n"
    )
    assert python("-c", program).stderr == ""


def test_install_is_not_confused_by_classes_without_a_module() -> None:
    """Generated code makes such classes."""
    program = (
        "import sys, types, compat\n"
        "sys.modules['generated'] = types.ModuleType('generated')\n"
        "sys.modules['generated'].Server = type('Server', (), {'__module__': None})\n"
        "compat.install()\n"
    )
    assert python("-c", program).stderr == ""


def test_install_that_comes_too_late_says_so() -> None:
    """And names the modules that hold the old classes."""
    ended = python("-c", "import http.server, compat; compat.install()", check=False)
    assert ended.returncode == 1
    assert "compat.install() comes too late: http.server already hold" in ended.stderr


def test_mistakes_on_the_command_line_are_explained(tmp_path: Path) -> None:
    """With what was given."""
    for arguments, message in (
        ([], "expected the path of a script, or -m and the name of a module"),
        (["-m"], "expected the path of a script, or -m and the name of a module"),
        ([tmp_path / "absent.py"], "can't open file"),
        (["-m", "absent_module"], "no module named 'absent_module'"),
        (["-m", "absent.module"], "error while finding module 'absent.module'"),
        (["--graceful-timeout", "soon", "x.py"], "invalid float value: 'soon'"),
    ):
        ended = python("-m", "compat", *arguments, check=False)
        assert ended.returncode != 0
        assert message in ended.stderr


def test_a_namesake_beside_the_script_is_pointed_out(tmp_path: Path) -> None:
    """Its `import compat` would give ours."""
    (tmp_path / "compat.py").write_text("")
    (tmp_path / "script.py").write_text("import compat, socketserver\nprint(socketserver is compat)\n")
    ended = python("-m", "compat", tmp_path / "script.py")
    assert ended.stdout == "True\n"
    assert f"`import compat` will not give the program {tmp_path / 'compat.py'}" in ended.stderr
