"""Poller: many connections behind one descriptor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from anyio.abc import SocketAttribute

import asyncserver
from asyncserver.net.poller import READ, WRITE, Poller


class Recorder:
    """Stands for a connection: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.then: Callable[[], object] = lambda: None
        self.event = asyncio.Event()

    def _on_readable(self) -> None:
        self.told.append("readable")
        self.event.set()
        self.then()

    def _on_writable(self) -> None:
        self.told.append("writable")
        self.event.set()
        self.then()


async def test_wakes_the_direction_that_is_ready() -> None:
    """A descriptor watched for both directions tells which one is ready; unwatched it tells nothing."""
    poller, recorder = Poller(asyncio.get_running_loop()), Recorder()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = ours.fileno()
        recorder.then = lambda: poller.watch(recorder, fd, WRITE, 0)
        poller.watch(recorder, fd, 0, WRITE)
        await recorder.event.wait()
        assert recorder.told == ["writable"]
        recorder.event.clear()
        recorder.then = lambda: poller.watch(recorder, fd, READ, 0)
        poller.watch(recorder, fd, 0, READ)
        theirs.send(b"x")
        await recorder.event.wait()
        assert recorder.told == ["writable", "readable"]
    poller.close()


async def test_connection_closed_by_another_of_its_batch_is_left_alone() -> None:
    """Two descriptors become ready at once and the first closes the second: nobody is told about that one."""
    poller = Poller(asyncio.get_running_loop())
    pairs = [socket.socketpair() for _ in range(2)]
    recorders = [Recorder(), Recorder()]
    fds = [ours.fileno() for ours, _ in pairs]

    def close_both() -> None:
        for recorder, fd in zip(recorders, fds, strict=True):
            poller.watch(recorder, fd, READ, 0)

    for recorder, fd, (_, theirs) in zip(recorders, fds, pairs, strict=True):
        recorder.then = close_both
        poller.watch(recorder, fd, 0, READ)
        theirs.send(b"x")
    await asyncio.wait([asyncio.ensure_future(one.event.wait()) for one in recorders], return_when="FIRST_COMPLETED")
    assert sum(len(recorder.told) for recorder in recorders) == 1
    for pending in asyncio.all_tasks() - {asyncio.current_task()}:
        pending.cancel()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    poller.close()


async def test_copy_of_a_descriptor_does_not_keep_it_ready() -> None:
    """A connection whose descriptor lives on as a copy, as in a child process, is reported no more once it closed."""
    copies: list[int] = []

    async def copying(stream: asyncserver.Stream) -> None:
        copies.append(os.dup(stream.extra(SocketAttribute.raw_socket).fileno()))
        await stream.receive(1)

    async with asyncserver.serve(copying, "127.0.0.1", 0) as server:
        with socket.create_connection(server.addresses[0]) as client:
            client.send(b"xy")
        async with asyncio.timeout(10):
            while not copies or server._poller._connections:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
        assert server._poller._epoll.poll(0) == []  # type: ignore[attr-defined]
    os.close(copies[0])


async def test_number_of_a_descriptor_closed_elsewhere_belongs_to_the_next() -> None:
    """A connection whose descriptor was closed behind its back leaves alone the one that has got the number since."""
    poller, first, second = Poller(asyncio.get_running_loop()), Recorder(), Recorder()
    pairs = [socket.socketpair() for _ in range(2)]
    fd = pairs[0][0].fileno()
    poller.watch(first, fd, 0, READ)
    os.dup2(pairs[1][0].fileno(), fd)  # closes it, and gives its number to another
    poller.watch(second, fd, 0, READ)
    poller.watch(first, fd, READ, 0)
    second.then = lambda: poller.watch(second, fd, READ, 0)
    pairs[1][1].send(b"x")
    async with asyncio.timeout(10):
        await second.event.wait()
    assert (first.told, second.told) == ([], ["readable"])
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    poller.close()


async def test_connection_that_outlives_the_poller_can_still_be_closed() -> None:
    """At the program's end tasks are cancelled in any order, and a server may be gone before its last handler is."""
    poller, recorder = Poller(asyncio.get_running_loop()), Recorder()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.watch(recorder, ours.fileno(), 0, READ)
        poller.close()
        poller.watch(recorder, ours.fileno(), READ, 0)
        assert not poller._connections
