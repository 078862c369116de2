"""The command line as a person types it, and modules with handlers for it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.kit.programs import Program

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


def write_modules(folder: Path) -> None:
    """Write them into a folder, and one that cannot be imported."""
    (folder / "app.py").write_text(APP)
    (folder / "legacy.py").write_text(LEGACY)
    (folder / "broken.py").write_text("import no_such_module_at_all\n")


def command(folder: Path, *arguments: str, **environment: str) -> Program:
    return Program(["-W", "error", "-m", "asyncserver", *arguments], folder, **environment)


def internet_address(program: Program, scheme: str = "tcp") -> tuple[str, int]:
    """Where a server of the program listens, as it has logged it."""
    program.wait_for(f"serving on {scheme}://")
    found = re.search(rf"serving on {scheme}://\[?(.*?)\]?:(\d+)\n", program.errors)
    assert found is not None
    return found[1], int(found[2])
