"""What a server needs is imported before it listens: afterwards a program may not read packages any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.programs import LOOPS, run_script

PROGRAM = """
import asyncio, importlib, logging, socket, sys
import asyncserver

async def stream(stream):
    async for data in stream:
        if data == b"raise":
            raise RuntimeError("as it was asked to")
        await stream.send(data)
        assert stream.extra_attributes

async def datagram(datagram):
    if datagram.data == b"raise":
        raise RuntimeError("as it was asked to")
    return datagram.data

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if data == b"raise":
            raise RuntimeError("as it was asked to")
        self.transport.write(data)

class DatagramProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, address):
        if data == b"raise":
            raise RuntimeError("as it was asked to")
        self.transport.sendto(data, address)

async def callback(reader, writer):
    while data := await reader.read(100):
        if data == b"raise":
            raise RuntimeError("as it was asked to")
        writer.write(data)
    writer.close()

def serving(kind):
    if kind == "stream":
        return asyncserver.serve(stream, "127.0.0.1", 0, idle_timeout=60, keepalive=60, max_connections=3)
    if kind == "protocol":
        return asyncserver.serve(asyncserver.from_protocol(Protocol), "127.0.0.1", 0)
    if kind == "callback":
        return asyncserver.serve(asyncserver.from_callback(callback), "127.0.0.1", 0)
    if kind == "proxied":
        return asyncserver.serve(stream, "127.0.0.1", 0, proxy_protocol=True)
    handler = datagram if kind == "datagram" else asyncserver.from_protocol(DatagramProtocol)
    return asyncserver.serve_datagrams(handler, "0.0.0.0", 0, groups=["239.255.1.2%lo"])

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names:
            raise AssertionError(f"{name} is imported after the server has begun to listen")

async def ask(loop, server, kind, data):
    how = socket.SOCK_DGRAM if "datagram" in kind else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, how) as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", server.addresses[0][1]))
        if kind == "proxied":
            await loop.sock_sendall(client, b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\\r\\n")
        await loop.sock_sendall(client, b"hello")
        assert await loop.sock_recv(client, 100) == b"hello"
        await loop.sock_sendall(client, data)
        if how == socket.SOCK_STREAM:
            client.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(client, 100) == b"", "closed"

async def main(kind):
    loop = asyncio.get_running_loop()
    async with serving(kind) as server:
        sys.meta_path.insert(0, Finder())
        await ask(loop, server, kind, b"")
        await ask(loop, server, kind, b"raise")
        server.pause()
        server.resume()
        print(server.stats(), server.connections)
        await server.close()

logging.basicConfig(level=logging.DEBUG)
module, kind = sys.argv[1:]
with asyncio.Runner(loop_factory=importlib.import_module(module).new_event_loop) as runner:
    runner.run(main(kind))
print("done")
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["stream", "proxied", "protocol", "callback", "datagram", "datagram protocol"])
def test_nothing_is_imported_once_it_listens(kind: str, loop: str, tmp_path: Path) -> None:
    """Connections, datagrams, errors of handlers and a drain need no module that was not there."""
    status, output, errors = run_script(PROGRAM, tmp_path, loop, kind)
    assert status == 0, errors
    assert output.endswith("done\n")
    assert "as it was asked to" in errors
    assert "AssertionError" not in errors
