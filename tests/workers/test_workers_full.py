"""Workers with `max_connections`: no client waits for a full one while another has room."""

from __future__ import annotations

import asyncio
import select
import signal
import socket

import pytest

from asyncserver.connections.accepted import Accepted
from asyncserver.listening.binding import Binding
from asyncserver.listening.listener import Listener
from tests.kit.waiting import PATIENCE, until
from tests.kit.workers import Start, WorkerClient


def test_client_waits_only_while_all_workers_are_full(start: Start) -> None:
    """Then too nobody is refused: who comes next is served when one leaves."""
    program = start("--tcp", "127.0.0.1:0", "--max-connections", "1")
    (tcp,) = program.serving()
    for _ in range(20):
        with WorkerClient(tcp) as one, WorkerClient(tcp) as other:
            assert one.ask()[1] != other.ask()[1]
            with WorkerClient(tcp) as third:
                third.send()
                assert not select.select([third.sock], [], [], 0)[0]
                other.close()
                _, _, size = third.head()
                third.rest(size)
    assert program.end() == 0


def test_full_workers_end_without_a_reset(start: Start) -> None:
    """In a rolling restart their queue goes to the new ones, and in the end it is emptied."""
    program = start("--tcp", "127.0.0.1:0", "--max-connections", "1")
    (tcp,) = program.serving()
    with WorkerClient(tcp) as one, WorkerClient(tcp) as other, WorkerClient(tcp) as third:
        before = {one.ask()[1], other.ask()[1]}
        third.send()
        program.tell(signal.SIGHUP)
        assert third.head()[1] not in before
        third.rest(10)
    program.expect("while it drained")
    program.expect("while it drained")
    with WorkerClient(tcp) as one, WorkerClient(tcp) as other, WorkerClient(tcp) as third:
        one.send(seconds=0.5)
        other.send(seconds=0.5)
        assert one.head()[1] != other.head()[1]
        third.send()
        program.tell(signal.SIGTERM)
        for client in (one, other):
            client.rest(10)
        _, _, size = third.head()
        third.rest(size)
    assert program.process.wait(PATIENCE) == 0


def test_limit_makes_one_queue_for_all_workers() -> None:
    """And one accepts no more than one client at a time from it, so that the others get theirs."""
    with_limit = Binding("127.0.0.1", 0, one_queue=True).open_slots(socket.SOCK_STREAM, 2)
    without = Binding("127.0.0.1", 0).open_slots(socket.SOCK_STREAM, 2)
    alone = Binding("127.0.0.1", 0, one_queue=True).open_slots(socket.SOCK_STREAM, 1)
    assert with_limit[0][0] is with_limit[1][0]
    assert without[0][0] is not without[1][0]
    assert [slots[0][0].contended for slots in (with_limit, without, alone)] == [True, False, False]
    for bound in {one for slots in (with_limit, without, alone) for slot in slots for one in slot}:
        bound.close()


@pytest.mark.parametrize(("contended", "taken"), [(True, 1), (False, 3)])
async def test_contended_listener_accepts_one_at_a_time(contended: bool, taken: int) -> None:
    """For each time that the loop finds it readable, so that other processes get the next."""
    (bound,) = await Binding("127.0.0.1", 0, backlog=10).open(socket.SOCK_STREAM)
    bound.contended = contended
    accepted: list[Accepted] = []
    first = asyncio.Event()
    at_once: list[int] = []

    def on_accepted(connection: Accepted) -> None:
        if not accepted:  # what comes in this turn of the loop is counted in the next
            loop.call_soon(first.set)
            loop.call_soon(lambda: at_once.append(len(accepted)))
        accepted.append(connection)

    loop = asyncio.get_running_loop()
    clients = [socket.create_connection(bound.address) for _ in range(3)]
    listener = Listener(loop, bound, Accepted, on_accepted, lambda: None)
    listener.resume()
    async with asyncio.timeout(PATIENCE):
        await first.wait()
    assert at_once == [taken]
    await until(lambda: len(accepted) == 3)
    listener.close()
    for sock in (*[one._sock for one in accepted], *clients):
        sock.close()
