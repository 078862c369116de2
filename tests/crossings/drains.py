"""Drains: what a connection has come to when its server begins to drain."""

from __future__ import annotations

import asyncio
import contextlib

from asyncserver import DrainReport
from tests.crossings.conversation import BIG_ONE
from tests.crossings.happenings import happening
from tests.crossings.ways import ADAPTERS, CLEAN, PROTOCOLS, Crossing, short_pause, short_silence, tally
from tests.kit.waiting import PATIENCE, until, within

ON_LOOP = ("stream", *ADAPTERS)


@happening("Server.close", "A connection that is between two messages comes to its end of stream")
async def drain_between_messages(x: Crossing) -> None:
    with short_pause():
        async with x.serve() as server:
            client = await x.connect(server)
            assert await client.ask(b"say a\n") == b"SAY A\n"
            report, heard = await x.ends(await x.drain(server), client)
            assert (report, heard) == (DrainReport(completed=1), [(b"", CLEAN)])
            assert tally(server) == {"completed": 1}


@happening("Server.close", "one that has just begun half a second later")
async def drain_of_a_newcomer_who_says_nothing(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        with short_silence():
            report, heard = await x.ends(await x.drain(server), client)
        assert (report, heard) == (DrainReport(completed=1), [(b"", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("Server.close", "one in a message goes on until it has answered")
async def drain_in_a_question(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        await client.send(b"bye ")
        await x.received(server, 10)
        closing = await x.drain(server)
        await client.send(b"b\n")
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"BYE B\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("Server.close", "one in a message goes on until it has answered")
async def drain_before_the_answer(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\nbye b\n")
        await x.waiting()
        closing = await x.drain(server)
        x.conversation.gate.open()
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"HOLD A\nBYE B\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("docs/deploy.md", "says after each message `stream.end_message()`", styles=("stream",))
async def drain_behind_a_message_without_an_answer(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"note a\n")
        await x.received(server, 7)
        report, heard = await x.ends(await x.drain(server), client)
        assert (report, heard) == (DrainReport(completed=1), [(b"", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("docs/deploy.md", "sees it end between two answers when its worker drains, never within one")
async def drain_between_two_writes_of_an_answer(x: Crossing) -> None:
    """A protocol does not read meanwhile; one that does is looked at among the adapters."""
    with short_pause():
        async with x.serve() as server:
            client = await x.connect(server)
            await client.send(b"parts\n")
            await x.waiting()
            assert await client.receive_exactly(6) == b"PARTS "
            closing = await x.drain(server)
            x.conversation.gate.open()
            report, heard = await x.ends(closing, client)
            assert (report, heard) == (DrainReport(completed=1), [(b"WHOLE\n", CLEAN)])
            assert tally(server) == {"completed": 1}


@happening("docs/reliability.md", "when the drain begins: bytes in the kernel, connections in the backlog")
async def drain_with_a_question_in_the_kernel(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        assert await client.ask(b"say a\n") == b"SAY A\n"
        sending = asyncio.create_task(client.send(b"bye b\n"))  # its first step has the kernel take all of it,
        closing = asyncio.create_task(server.close())  # and in the same round of the loop, unseen, the drain begins
        await sending
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"BYE B\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("docs/reliability.md", "What had reached this host is answered")
async def drain_with_a_question_behind_another(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\n")
        await x.waiting()
        await client.send(b"bye b\n")
        await x.turns()
        closing = await x.drain(server)
        x.conversation.gate.open()
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"HOLD A\nBYE B\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("docs/deploy.md", "sees it end between two answers when its worker drains, never within one")
async def drain_with_a_slow_reader(x: Crossing) -> None:
    with short_pause():
        async with x.serve() as server:
            client = await x.connect(server)
            await client.send(b"big\n")
            assert await client.receive_exactly(1000) == b"x" * 1000
            closing = await x.drain(server)
            await x.turns()
            assert not closing.done()
            report, heard = await x.ends(closing, client)
            assert (report, heard) == (DrainReport(completed=1), [(BIG_ONE.replace(b"2097152", b"2096152"), CLEAN)])
            assert tally(server) == {"completed": 1}


@happening("docs/reliability.md", "What had reached this host is answered")
async def drain_with_a_slow_reader_who_asks_again(x: Crossing) -> None:
    """The next question may have reached us too late to be answered, but costs nothing of the answer before."""
    with short_pause():
        async with x.serve() as server:
            client = await x.connect(server)
            await client.send(b"big\n")
            assert await client.receive_exactly(1000) == b"x" * 1000
            closing = await x.drain(server)
            await client.send(b"say b\n")
            report, heard = await x.ends(closing, client)
            assert report == DrainReport(completed=1)
            assert heard[0][0].removesuffix(b"SAY B\n") == b"<2096152>\n"
            assert heard[0][1] == CLEAN
            assert tally(server) == {"completed": 1}


@happening("docs/reliability.md", "What had reached this host is answered")
async def drain_before_a_reader_asks_again(x: Crossing) -> None:
    """The kernel has the whole answer, and has not delivered it yet."""
    with short_pause():
        async with x.serve() as server:
            client = await x.connect(server)
            await client.send(b"much\n")
            assert await client.receive_exactly(1000) == b"x" * 1000
            closing = await x.drain(server)
            await x.turns()
            with contextlib.suppress(OSError):  # as it should be where the kernel tells of the end at once
                await client.send(b"say b\n")
            report, heard = await x.ends(closing, client)
            assert report == DrainReport(completed=1)
            # An ordinary protocol may still be within its answer for a second, a thread waits until it is sent, and
            # under TLS records without payload may promise more: they answer what comes then.
            may_be_late = x.way.style in {*PROTOCOLS, "hosted"} or x.way.wire == "tls"
            late = b"SAY B\n" if may_be_late else b""
            assert heard[0][0].removesuffix(late) == b"<149000>\n"
            assert heard[0][1] == CLEAN
            assert tally(server) == {"completed": 1}


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served")
async def drain_of_a_newcomer_in_the_queue(x: Crossing) -> None:
    async with x.serve() as server:
        server.pause()
        client = await x.dial(server)
        x.begin(client, b"bye a\n")
        await x.turns()
        assert server.stats().accepted == 0
        closing = await x.drain(server)
        await x.go_on(client, b"bye a\n")
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"BYE A\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("Server.close", "Handlers that still run after `drain_timeout` seconds are cancelled", styles=ON_LOOP)
async def drain_to_the_deadline(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\n")
        await x.waiting()
        assert await within(server.close(0), 5) == DrainReport(cancelled=1)
        assert (await x.hear_out(client))[0] == b""
        assert tally(server) == {"cancelled": 1}


@happening("Server.close", "Handlers that still run after `drain_timeout` seconds are cancelled")
async def drain_to_the_deadline_with_one_who_does_not_read(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"big\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        if x.way.style == "hosted":  # a busy machine may let the thread wait for longer than the grace of these tests
            server._cancel_grace = PATIENCE
        assert await within(server.close(0)) == DrainReport(cancelled=1)
        assert tally(server) == {"cancelled": 1}
        await x.hear_plainly(client)


@happening(
    "DrainReport",
    "and those whose peers had not taken all that was sent by the deadline",
    styles=ON_LOOP,
    wires=("tcp", "tls"),  # what a Unix socket's kernel has, the peer has
)
async def drain_to_the_deadline_with_an_answer_not_taken(x: Crossing) -> None:
    """The kernel has it, and its peer does not read."""
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"much\n")
        assert await client.receive_exactly(1000) == b"x" * 1000
        closing = await x.drain(server)
        # A protocol has not ended as long as its transport has bytes to send.
        expected = DrainReport(cancelled=1) if x.way.style in PROTOCOLS else DrainReport(aborted=1)
        if expected.aborted:
            await until(lambda: not server.connections)
        assert await within(server.close(0)) == await closing == expected
        assert server.stats().undelivered == expected.aborted
        await x.hear_plainly(client)


@happening("DrainReport", "handlers that had not ended a second after that", styles=("hosted",))
async def drain_to_the_deadline_of_a_thread(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\n")
        await x.waiting()
        assert await within(server.close(0)) == DrainReport(aborted=1)
        assert (await x.hear_out(client))[0] == b""
        assert tally(server) == {"cancelled": 1}


@happening("Server.close", "If the caller is cancelled while it waits, the deadline is now")
async def drain_that_is_cancelled(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"hold a\n")
        await x.waiting()
        closing = await x.drain(server)
        closing.cancel()
        await asyncio.wait([closing], timeout=5)
        assert closing.cancelled()
        assert (await x.hear_out(client))[0] == b""
        assert tally(server) == {"cancelled": 1}
