"""Peers: slow readers, half-closed connections, idle ones, and those that break."""

from __future__ import annotations

import asyncio
import contextlib

from asyncserver import DrainReport, Server
from tests.crossings.conversation import BIG, BIG_ONE
from tests.crossings.happenings import happening
from tests.crossings.ways import ADAPTERS, CLEAN, SOON, Crossing, Way, comes_to, short_linger, tally
from tests.kit.hosts import silence
from tests.kit.waiting import until, within

ON_LOOP = ("stream", *ADAPTERS)
#: Longer than any test takes; what happens then is made to happen by `lapse`.
_HOUR = 3600.0


def lapse(server: Server) -> None:
    """Let the idle timeout go by: whatever has not moved since this was called last is idle."""
    seen = server._idle_seen  # type: ignore[attr-defined] # a StreamServer's
    for connection, (moved, since) in tuple(seen.items()):
        seen[connection] = moved, since - _HOUR
    server._look_for_idle()  # type: ignore[attr-defined]


def _ends_early(way: Way) -> bool:
    """Whether the end of the peer's side leaves time for an answer: for what is no callback, asyncio's TLS does not."""
    return (way.style, way.wire) != ("callback", "tls")


@happening("serve", "When it returns or raises, what it sent is delivered and the connection closed")
async def end_with_a_slow_reader(x: Crossing) -> None:
    """Under TLS longer than a close may take whose peer has gone."""
    with short_linger():
        async with x.serve() as server:
            client = await x.connect(server)
            await client.send(b"flood\n")
            assert await x.hear_out(client, 0.005 if x.way.wire == "tls" else 0, 16384) == (BIG_ONE, CLEAN)
            await comes_to(server, completed=1)


@happening("serve", "When it returns or raises, what it sent is delivered and the connection closed")
async def end_with_a_reader_who_has_asked_again(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        await client.send(b"say b\n")
        assert await x.hear_out(client) == (b"<2096152>\n", CLEAN)
        await comes_to(server, completed=1)


@happening("serve", "When it returns or raises, what it sent is delivered and the connection closed")
async def end_with_a_reader_who_asks_again_then(x: Crossing) -> None:
    """The kernel has the whole answer, and has not delivered it yet."""
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"all\n")
        await until(lambda: x.conversation.ending == 1)
        await x.turns()
        with contextlib.suppress(OSError):  # as it should be where the kernel tells of the end at once
            await client.send(b"say b\n")
        assert await x.hear_out(client) == (b"<150000>\n", CLEAN)
        await comes_to(server, completed=1)


@happening("serve", "what it sent is delivered and the connection closed", only=_ends_early)
async def peer_ends_its_side_behind_a_question(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"say a\n")
        await client.send_eof()
        assert await x.hear_out(client) == (b"SAY A\n", CLEAN)
        await comes_to(server, completed=1)


def _half_closes(way: Way) -> bool:
    """Whether such a connection can go on: asyncio's TLS cannot, nor a protocol whose `eof_received` says so."""
    return way.style in {"stream", "hosted"} or (way.style == "callback" and way.wire != "tls")


@happening("Server.close", "one in a message goes on until it has answered", only=_half_closes)
async def drain_behind_a_half_closed_question(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\nsay b\n")
        await client.send_eof()
        await x.waiting()
        closing = await x.drain(server)
        x.conversation.gate.open()
        _, heard = await x.ends(closing, client)
        assert heard == [(b"HOLD A\nSAY B\n", CLEAN)]
        assert tally(server) == {"completed": 1}


@happening("README.md", "A peer that leaves is no error")
async def peer_resets_before_the_answer(x: Crossing) -> None:
    async with x.serve() as server:
        client, other = await x.connect(server), await x.connect(server)
        await client.send(b"hold a\n")
        await x.waiting()
        client.reset()
        await x.turns()
        x.conversation.gate.open()
        await comes_to(server, active=1, completed=1)
        assert await other.ask(b"say b\n") == b"SAY B\n"
        other.close()
        assert not x.errors


@happening("README.md", "A peer that leaves is no error")
async def peer_resets_in_the_answer(x: Crossing) -> None:
    async with x.serve() as server:
        client, other = await x.connect(server), await x.connect(server)
        await client.send(b"big\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        client.reset()
        await comes_to(server, active=1, completed=1)
        assert await other.ask(b"say b\n") == b"SAY B\n"
        other.close()
        assert not x.errors


@happening("README.md", "A peer that leaves is no error")
async def peer_leaves_in_the_question(x: Crossing) -> None:
    """Under TLS without close_notify: what came may not be all, but that is no error either."""
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"say a\nsay ")
        assert await client.receive_exactly(6) == b"SAY A\n"
        client.close()
        await comes_to(server, completed=1)
        assert not x.errors


@happening("Server.close", "Stop, politely: no new work, then wait for the handlers, then insist.")
async def peer_resets_in_a_drain(x: Crossing) -> None:
    """Nobody is left to wait for."""
    async with x.serve() as server:
        client = await x.connect(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        await client.send(b"say ")
        await x.received(server, 10)
        closing = await x.drain(server)
        await x.turns()
        assert not closing.done()
        client.reset()
        assert await within(closing, SOON) == DrainReport(completed=1)
        assert tally(server) == {"completed": 1}
        assert not x.errors


@happening("ServerStats", "payload bytes sent over connections")
async def bytes_are_counted(x: Crossing) -> None:
    """Neither headers nor TLS count."""
    async with x.serve() as server:
        client = await x.connect(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        await client.send(b"flood\n")
        assert await x.hear_out(client) == (BIG_ONE, CLEAN)
        await comes_to(server, completed=1)
        stats = server.stats()
        assert (stats.bytes_received, stats.bytes_sent) == (12, 6 + len(BIG))


@happening(
    "serve", "seconds without a byte in either direction after which the pending or next `receive()`", styles=ON_LOOP
)
async def idle_but_for_a_steady_reader(x: Crossing) -> None:
    """More than the kernel can hold leaves us between two looks."""
    async with x.serve(idle_timeout=_HOUR) as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        for _ in range(4):
            lapse(server)
            await client.receive_exactly(len(BIG) // 5)
        assert await x.hear_out(client) == (b"<%d>\n" % (len(BIG) - 1 - len(BIG) // 5 * 4), CLEAN)
        await comes_to(server, completed=1)


@happening("serve", "Uncaught it closes the connection, without an error in the log.", styles=ON_LOOP)
async def idle(x: Crossing) -> None:
    async with x.serve(idle_timeout=_HOUR) as server:
        client = await x.connect(server)
        lapse(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        lapse(server)
        await x.turns()
        assert tally(server) == {"active": 1}
        lapse(server)
        assert await x.hear_out(client) == (b"", CLEAN)
        await comes_to(server, timed_out=1)
        assert not x.errors


@happening("serve", "(and a pending `send()`) raises IdleTimeout", styles=ON_LOOP)
async def idle_in_the_answer(x: Crossing) -> None:
    async with x.serve(idle_timeout=_HOUR) as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        moved = -1
        while moved != (moved := server.stats().bytes_sent):
            await x.turns()
        lapse(server)
        lapse(server)
        lapse(server)
        await comes_to(server, timed_out=1)
        assert not x.errors
        client.close()


@happening("hosted", "with `idle_timeout` each receive and send of the socket raises TimeoutError", styles=("hosted",))
async def idle_in_a_thread(x: Crossing) -> None:
    async with x.serve(idle_timeout=0.2) as server:
        client = await x.connect(server)
        assert (await x.hear_out(client))[0] == b""
        await comes_to(server, timed_out=1)
        assert not x.errors


@happening(
    "serve",
    "seconds without a byte in either direction after which the pending or next `receive()`",
    styles=("hosted",),
    wires=("tcp", "tls"),  # a Unix socket of a thread is one of TCP
)
async def idle_but_for_a_steady_reader_of_a_thread(x: Crossing) -> None:
    async with x.serve(idle_timeout=2) as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        assert await x.hear_out(client, 0.018, 16384) == (BIG_ONE, CLEAN)
        await comes_to(server, completed=1)


@happening("serve", "seconds without a byte in either direction", wires=("tls",), styles=ON_LOOP)
async def idle_in_the_handshake(x: Crossing) -> None:
    """A handshake has a time of its own, however slow it is; what counts comes after it."""
    async with x.serve(idle_timeout=_HOUR) as server:
        client = await x.dial(server)
        x.begin(client)
        await until(lambda: server.stats().accepted == 1)
        await x.turns()
        lapse(server)
        lapse(server)
        await x.go_on(client)
        await x.turns()
        assert await client.ask(b"say a\n") == b"SAY A\n"
        client.close()
        await comes_to(server, completed=1)


@happening(
    "serve",
    "seconds, at least 2, in which a peer whose host has vanished without a word is found",
    styles=ON_LOOP,
    wires=("tcp", "tls"),
)
async def vanished(x: Crossing) -> None:
    async with x.serve(keepalive=2) as server:
        client = await x.connect(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        with silence():
            await comes_to(server, completed=1)
        assert server.stats().vanished == 1
        assert not x.errors
        client.close()


@happening("serve", "idle, in a send, or with bytes under way", styles=ON_LOOP, wires=("tcp", "tls"))
async def vanished_in_the_answer(x: Crossing) -> None:
    async with x.serve(keepalive=2) as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        with silence():
            await comes_to(server, completed=1)
        assert server.stats().vanished == 1
        assert not x.errors
        client.close()


@happening("serve", "Counted as `vanished`", styles=ON_LOOP, wires=("tcp", "tls"))
async def vanished_in_the_drain(x: Crossing) -> None:
    """One that holds up a drain, since it takes nothing, is found in it, too."""
    async with x.serve(keepalive=2, drain_timeout=_HOUR) as server:
        client = await x.connect(server)
        await client.send(b"flood\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        closing = asyncio.ensure_future(server.close())
        with silence():
            await within(closing)
        assert server.stats().vanished == 1
        assert not x.errors
        client.close()
