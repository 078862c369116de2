"""Workers: the same handlers in processes that are replaced and told to stop, while clients wait for their answers."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.crossings.happenings import text_of
from tests.crossings.ways import STYLES, WIRES
from tests.kit.waiting import PATIENCE
from tests.kit.workers import Start, WorkerProgram

PROMISE = "A client that keeps its connection sees it end between two answers when its worker drains, never within one."

PROGRAM = """
import asyncio, logging, os, sys, time
import asyncserver
from tests.crossings.conversation import Conversation, Gate

class FileGate(Gate):  # for all workers
    async def passed(self):
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)

    def passed_by_thread(self):
        while not os.path.exists("gate"):
            time.sleep(0.01)

if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    conversation = Conversation()
    conversation.gate = FileGate()
    servings = []
    for style in {styles}:
        handler = conversation.handler(style)
        servings.append(asyncserver.serve(handler, "127.0.0.1", 0))
        servings.append(asyncserver.serve(handler, path=style + ".sock"))
        servings.append(asyncserver.serve(handler, "127.0.0.1", 0, ssl=asyncserver.tls_context("{certificate}")))
    asyncserver.run(*servings, loop=sys.argv[1], workers=2)
"""


def connect(address: str, folder: Path, context: ssl.SSLContext | None) -> socket.socket:
    """Connect to an address as the log has it."""
    if address.startswith("tcp"):
        sock = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), PATIENCE)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(str(folder / address.removeprefix("unix:")))
    return sock if context is None else context.wrap_socket(sock, server_hostname="localhost")


def hear_out(sock: socket.socket) -> bytes:
    """Receive to the end, which has to be a clean one, and close."""
    with sock:
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
        return data


class House:
    """A program with all handlers on all wires, and clients of each."""

    def __init__(self, program: WorkerProgram, context: ssl.SSLContext) -> None:
        self.program = program
        self.context = context
        self.serving()

    def serving(self) -> None:
        """Wait until all workers serve."""
        self.addresses = self.program.expect(r"2 workers serve on (.*)")[1].split(", ")

    def clients(self) -> dict[str, socket.socket]:
        """Connect a client to each, who has had an answer."""
        wires = itertools.product(STYLES, WIRES)
        clients = {}
        for (style, wire), address in zip(wires, self.addresses, strict=True):
            client = connect(address, self.program.folder, self.context if wire == "tls" else None)
            client.sendall(b"say a\n")
            assert client.recv(100) == b"SAY A\n"
            clients[f"{style}-{wire}"] = client
        return clients


@pytest.fixture
def house(start: Start, certfile: Path, client_context: ssl.SSLContext) -> House:
    return House(start(script=PROGRAM.format(styles=STYLES, certificate=certfile)), client_context)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGHUP, r"SIGHUP"), (signal.SIGTERM, r"SIGTERM: no new work")])
def test_workers_drain_before_the_answer(house: House, number: int, told: str) -> None:
    """Every client has its answers whole, and a clean end; after a restart there are others to ask."""
    assert PROMISE in text_of("docs/deploy.md")
    clients = house.clients()
    for client in clients.values():
        client.sendall(b"hold a\nbye b\n")
    house.program.tell(number)
    house.program.expect(told)
    if number == signal.SIGHUP:
        house.serving()
    (house.program.folder / "gate").touch()
    assert {name: hear_out(client) for name, client in clients.items()} == dict.fromkeys(clients, b"HOLD A\nBYE B\n")
    if number == signal.SIGHUP:
        for client in house.clients().values():
            client.sendall(b"bye b\n")
            assert hear_out(client) == b"BYE B\n"
        house.program.tell(signal.SIGTERM)
    assert house.program.process.wait(PATIENCE) == 0
    assert not re.search("(?m)^(ERROR|WARNING)", house.program.errors)
