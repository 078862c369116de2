"""The recipes beside others' code: FastAPI, and a handler written for socketserver."""

from __future__ import annotations

import ftplib
import io
import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.kit.sockets import free_port
from tests.kit.waiting import PATIENCE, wait_until
from tests.recipes.conftest import Person, Start


def ask(port: int, path: str) -> Any:
    """Get what HTTP answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as response:
        return json.load(response)


def test_fastapi(start: Start) -> None:
    """What sensors have sent is there for HTTP; SIGTERM drains both, and a sensor that is connected ends neither."""
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module)
    sensors = free_port()
    program = start("beside_fastapi.py", {"7000": str(sensors), "port=8000": "port=0"})
    web = int(program.expect(r"running on http://127\.0\.0\.1:(\d+)")[1])
    with Person(sensors) as kitchen, Person(sensors) as rude:
        kitchen.says(b"kitchen 20\nkitchen 21")
        rude.says(b"kitchen twenty")
        assert rude.hears() == b"expected a name and a whole number"
        assert rude.rest() == b""
        wait_until(lambda: ask(web, "/sensors") == {"connected": 1, "accepted": 2})
        assert ask(web, "/readings/kitchen") == 21
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            ask(web, "/readings/cellar")
        caught.value.close()
        program.tell(signal.SIGTERM)
        assert kitchen.rest() == b""
        program.wait()
    assert "Application shutdown complete" in program.errors


def test_ftp(start: Start, tmp_path: Path) -> None:
    """The old handler sends files, its own errors, and nothing outside of its folder; beside it a coroutine counts."""
    (tmp_path / "public").mkdir()
    (tmp_path / "public/file").write_bytes(b"hello" * 100_000)
    (tmp_path / "secret").write_bytes(b"secret")
    program = start("ftp.py")
    ftp, status = program.ports()
    with ftplib.FTP() as client, Person(ftp) as silent:
        client.connect("127.0.0.1", ftp, PATIENCE)
        client.login()
        assert silent.hears() == b"220 ready"
        with Person(status) as one:
            assert one.hears() == b"2 sessions"
        target = io.BytesIO()
        client.retrbinary("RETR file", target.write)
        assert target.getvalue() == b"hello" * 100_000
        for name in ("../secret", "/etc/passwd", ".", "none"):
            with pytest.raises(ftplib.error_perm, match=r"550 (No such file|Is a directory)"):
                client.retrbinary(f"RETR {name}", target.write)
        with pytest.raises(ftplib.error_perm, match="502 not here"):
            client.delete("file")
        client.retrbinary("RETR file", target.write)
        assert client.quit() == "221 bye"
        assert program.end(signal.SIGTERM) == 0
        assert silent.rest() == b""
