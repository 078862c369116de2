"""server.sendto: datagrams to peers that the program chooses, from the right socket and address, counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import asyncserver
from tests.kit.datagrams import Place, peer
from tests.kit.handlers import silent_datagram, upper_datagram
from tests.kit.networks import INTERFACE, IPV4, IPV6, LINK_LOCAL, in_own_network
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from asyncserver import Datagram


def dual_stack() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    return sock


async def test_peer_that_has_not_asked_gets_a_datagram(place: Place) -> None:
    """Of each family; what is bytes-like is sent as it is."""
    async with place.serve(silent_datagram) as server:
        client = place.client(server)
        if place.family != "unix":
            client.sock.bind((server.addresses[0][0], 0))
        for data in (b"bytes", bytearray(b"array"), memoryview(b"memory"), memoryview(b"abcd").cast("H"), b""):
            await server.sendto(data, client.sock.getsockname())
            assert await client.receive_from() == (bytes(data), server.addresses[0])
        await server.sendto(b"own", client.sock.getsockname(), server.addresses[0])
        assert await client.receive() == b"own"


async def test_it_counts_as_sent_and_as_nobodys_answer(udp: Place) -> None:
    """So received = answered + silent still holds, and sent is what left."""
    handled = asyncio.Event()

    async def handler(datagram: Datagram) -> bytes | None:
        await server.sendto(b"by the way", datagram.address)
        handled.set()
        return b"answer" if datagram.data == b"question" else None

    async with udp.serve(handler) as server:
        client = udp.client(server)
        client.send(b"question")
        assert {await client.receive(), await client.receive()} == {b"by the way", b"answer"}
        handled.clear()
        client.send(b"notice")
        assert await client.receive() == b"by the way"
        await handled.wait()
    stats = server.stats()
    assert (stats.datagrams_received, stats.datagrams_answered, stats.datagrams_silent) == (2, 1, 1)
    assert (stats.datagrams_sent, stats.datagrams_dropped, stats.failed) == (3, 0, 0)


@pytest.mark.parametrize("hosts", [None, ["127.0.0.1", "::1"], ["0.0.0.0", "::"]])
async def test_socket_is_chosen_by_the_family(hosts: Any) -> None:
    """Of a server with one for each."""
    async with asyncserver.serve_datagrams(silent_datagram, hosts, 0) as server:
        port = server.addresses[0][1]
        with peer("127.0.0.1") as four, peer("::1", socket.AF_INET6) as six:
            await server.sendto(b"4", four.getsockname())
            await server.sendto(b"mapped", ("::ffff:127.0.0.1", four.getsockname()[1]))
            await server.sendto(b"6", six.getsockname())
            await server.sendto(b"short", six.getsockname()[:2])
            assert [four.recvfrom(9) for _ in range(2)] == [
                (b"4", ("127.0.0.1", port)),
                (b"mapped", ("127.0.0.1", port)),
            ]
            assert [six.recvfrom(9) for _ in range(2)] == [(b"6", ("::1", port, 0, 0)), (b"short", ("::1", port, 0, 0))]
    assert server.stats().datagrams_sent == 4


@pytest.mark.parametrize("kind", ["one host", "several hosts", "dual"])
async def test_it_comes_from_the_local_address(kind: str) -> None:
    """As a text or with the port; what a datagram has as `local_address` will do too."""
    options: dict[str, Any] = {"port": 0, "host": "0.0.0.0" if kind == "one host" else ["127.0.0.1", "127.0.0.9"]}
    if kind == "dual":
        options = {"sock": dual_stack()}
    locals_seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        locals_seen.append(datagram.local_address)
        return b""

    async with asyncserver.serve_datagrams(handler, **options) as server:
        port = server.addresses[0][1]
        with peer("127.0.0.1") as sock:
            for local in ("127.0.0.9", ("127.0.0.9", port), "::ffff:127.0.0.9"):
                await server.sendto(b"x", sock.getsockname(), local)
                assert sock.recvfrom(9) == (b"x", ("127.0.0.9", port))
            await server.sendto(b"x", sock.getsockname(), server.addresses[0])
            assert sock.recvfrom(9) == (b"x", ("127.0.0.1", port))
            sock.sendto(b"question", ("127.0.0.9", port))
            await asyncio.get_running_loop().run_in_executor(None, sock.recv, 9)
            await server.sendto(b"x", sock.getsockname(), locals_seen[0])
            assert sock.recvfrom(9) == (b"x", ("127.0.0.9", port))


async def test_route_chooses_among_several_hosts() -> None:
    """The kernel's choice for this peer is one of them."""
    async with asyncserver.serve_datagrams(silent_datagram, ["127.0.0.9", "127.0.0.1"], 0) as server:
        with peer("127.0.0.1") as sock:
            await server.sendto(b"x", sock.getsockname())
            assert sock.recvfrom(9) == (b"x", ("127.0.0.1", server.addresses[0][1]))


async def test_unix_peers(unix: Place, tmp_path: Path) -> None:
    """Their address is a path; who is gone is told of, and a tuple is no path."""
    async with unix.serve(silent_datagram) as server:
        client = unix.client(server)
        path = Path(client.sock.getsockname())
        await server.sendto(b"x", path)  # type: ignore[arg-type,unused-ignore]
        assert await client.receive() == b"x"
        with pytest.raises(TypeError, match="takes the path of a peer's socket"):
            await server.sendto(b"x", ("127.0.0.1", 9))
        with pytest.raises(ValueError, match="it has no name"):
            await server.sendto(b"x", "")
        with pytest.raises(ValueError, match="local_address='other' is no address of the server"):
            await server.sendto(b"x", str(path), "other")
        with pytest.raises(anyio.BrokenResourceError, match="nobody reads at"):
            await server.sendto(b"x", str(tmp_path / "nobody"))
        client.sock.close()
        with pytest.raises(anyio.BrokenResourceError, match="nobody reads at") as caught:
            await server.sendto(b"x", str(path))
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_full_peer_is_waited_for_and_cancellation_sends_nothing(unix: Place) -> None:
    """What was cancelled does not arrive later; what was waited for arrives whole."""
    async with unix.serve(silent_datagram) as server:
        client = unix.client(server)
        path = client.sock.getsockname()
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.1):
                    await server.sendto(b"%d" % sent, path)
                sent += 1
        waiting = asyncio.create_task(server.sendto(b"last", path))
        arrived = [await client.receive() for _ in range(sent + 1)]
        await waiting
        assert arrived == [*(b"%d" % number for number in range(sent)), b"last"]
        assert server.stats().datagrams_sent == sent + 1


async def test_in_a_drain_and_after_the_end(udp: Place) -> None:
    """Until the server has closed it sends; then it says that it has."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        begun.set()
        await release.wait()
        await server.sendto(b"in the drain", datagram.address)

    async with udp.serve(handler) as server:
        client = udp.client(server)
        client.send(b"question")
        await begun.wait()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        assert not server.taking
        await server.sendto(b"from outside", client.sock.getsockname())
        release.set()
        assert [await client.receive(), await client.receive()] == [b"from outside", b"in the drain"]
        await closing
    with pytest.raises(anyio.ClosedResourceError, match="the server has been closed"):
        await server.sendto(b"late", client.sock.getsockname())
    with pytest.raises(TypeError):
        await server.sendto("late", client.sock.getsockname())  # type: ignore[arg-type]


async def test_wait_for_a_full_peer_ends_with_the_server(unix: Place) -> None:
    """A timer's task, for which no drain waits, hears that the server has closed."""
    async with unix.serve(silent_datagram) as server:
        path = unix.client(server).sock.getsockname()

        async def fill() -> None:
            while True:
                await server.sendto(b"x", path)

        filling = asyncio.create_task(fill())
        await asyncio.sleep(0)
    with pytest.raises(anyio.ClosedResourceError):
        await filling


async def test_protocol_server_sends_too(udp: Place) -> None:
    """Beside its transport."""
    async with udp.serve(asyncserver.from_protocol(asyncio.DatagramProtocol)) as server:
        with peer("127.0.0.1") as sock:
            await server.sendto(b"x", sock.getsockname())
            assert sock.recvfrom(9) == (b"x", server.addresses[0])
    assert server.stats().datagrams_sent == 1


async def test_server_of_streams_refuses() -> None:
    """It has no socket for that."""

    async def handler(stream: asyncserver.Stream) -> None:
        del stream

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        with pytest.raises(TypeError, match=r"sendto\(\) sends datagrams; <StreamServer .* serves connections"):
            await server.sendto(b"x", ("127.0.0.1", 9))


async def test_behind_a_proxy_it_is_refused(udp: Place) -> None:
    """A client behind it does not know us."""
    async with udp.serve(silent_datagram, proxy_protocol=True) as server:
        with pytest.raises(TypeError, match=r"would pass by the proxy.*reply\(\)"):
            await server.sendto(b"x", ("127.0.0.1", 9))


async def test_broadcast_needs_nothing_more() -> None:
    """The socket may broadcast from the first time on."""
    async with asyncserver.serve_datagrams(silent_datagram, "0.0.0.0", 0) as server:
        with peer("127.255.255.255") as sock:
            await server.sendto(b"x", sock.getsockname())
            assert sock.recvfrom(9) == (b"x", ("127.0.0.1", server.addresses[0][1]))
            assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1


async def test_kept_datagram_is_answered_later(udp: Place) -> None:
    """From a timer, after its handler has ended; after the server's end it cannot be."""
    kept: list[Datagram] = []

    async def handler(datagram: Datagram) -> None:
        kept.append(datagram)

    async with asyncserver.serve_datagrams(handler, "0.0.0.0", 0) as server:
        client = udp.client(server)
        client.server = ("127.0.0.9", server.addresses[0][1])
        client.send(b"question")
        async with asyncio.timeout(PATIENCE):
            while not server.stats().completed:
                await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_later(0, lambda: replies.append(loop.create_task(kept[0].reply(b"later"))))
        replies: list[asyncio.Task[None]] = []
        assert await client.receive_from() == (b"later", client.server)
        await replies[0]
        stats = server.stats()
        assert (stats.datagrams_sent, stats.datagrams_answered, stats.datagrams_silent) == (1, 0, 1)
    with pytest.raises(anyio.ClosedResourceError):
        await kept[0].reply(b"too late")


async def _links(index: int) -> None:
    group = "239.1.2.3"
    async with asyncserver.serve_datagrams(silent_datagram, None, 0) as server:
        port = server.addresses[0][1]
        with peer("0.0.0.0") as four, peer("::", socket.AF_INET6) as six:
            own = socket.inet_aton(group) + socket.inet_aton(IPV4)
            four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, own)
            joined = socket.inet_pton(socket.AF_INET6, "ff02::114") + index.to_bytes(4, "little")
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
            to_four, to_six = four.getsockname()[1], six.getsockname()[1]
            for host in (f"{group}%{INTERFACE}", f"{group}%{index}", "10.9.0.255", "255.255.255.255"):
                await server.sendto(b"x", (host, to_four))
                assert four.recvfrom(9) == (b"x", (IPV4, port)), host
            await server.sendto(b"x", (f"{group}%{INTERFACE}", to_four), "10.9.0.6")
            assert four.recvfrom(9) == (b"x", ("10.9.0.6", port))
            for host in (f"ff02::114%{INTERFACE}", f"{LINK_LOCAL}%{index}"):
                await server.sendto(b"x", (host, to_six))
                assert six.recvfrom(9)[1] == (LINK_LOCAL, port, 0, index), host
            await server.sendto(b"x", ("ff02::114", to_six, 0, index), LINK_LOCAL)
            assert six.recvfrom(9)[1] == (LINK_LOCAL, port, 0, index)
            await server.sendto(b"x", (IPV6, to_six), (IPV6, port))
            assert six.recvfrom(9)[1] == (IPV6, port, 0, 0)


@in_own_network
def test_groups_broadcasts_and_links() -> None:
    """An interface after % for both families; the address that it has there, or the one that is asked for."""
    asyncio.run(_links(socket.if_nametoindex(INTERFACE)))


async def test_other_tasks_run_while_many_are_sent(udp: Place) -> None:
    """The socket always has room, and yet the loop turns: what is cancelled there is not sent."""
    async with udp.serve(silent_datagram) as server:
        with peer("127.0.0.1") as sock:

            async def tell() -> None:
                while True:
                    await server.sendto(b"x", sock.getsockname())

            telling = asyncio.create_task(tell())
            for _ in range(3):
                await asyncio.sleep(0)
            telling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await telling
            sent = server.stats().datagrams_sent
            assert 0 < sent < 200
            sock.setblocking(False)
            assert [sock.recv(9) for _ in range(sent)] == [b"x"] * sent
            with pytest.raises(BlockingIOError):
                sock.recv(9)


async def test_upper_is_served_meanwhile(udp: Place) -> None:
    """What handlers return and what is sent besides go in one order."""
    async with udp.serve(upper_datagram) as server:
        client = udp.client(server)
        assert await client.ask(b"a") == b"A"
        await server.sendto(b"b", client.sock.getsockname())
        assert await client.receive() == b"b"
