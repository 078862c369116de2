"""Hints: what to write instead of methods that other libraries' streams and datagrams have.

The error of a handler gets one as a note, when it is reported. A `__getattr__` in the classes would
slow down each attribute that the hot paths look at, let type checkers believe in any name, and
mocks have methods that are not there.
"""

from __future__ import annotations

_SEND = "await stream.send(data), or stream.post(data), which never waits"
_RECEIVE = "async for data in stream, or await stream.receive(max_bytes)"
_CLOSE = "return from the handler, or await stream.aclose()"
_END = "async for data in stream, which ends with it; receive() raises anyio.EndOfStream"
_PEER = "stream.peer_address, stream.local_address, or stream.extra() with anyio's typed attributes"
_REPLY = "await datagram.reply(data), or return the bytes"

# Of asyncio's StreamReader, StreamWriter and transports, sockets, trio's streams, websockets. The
# classes stand here by their names: servers of streams import no datagrams, nor these streams.
_INSTEAD: dict[str, dict[str, str]] = {
    "asyncserver.streams.stream.Stream": {
        **dict.fromkeys(("write", "sendall", "send_all"), _SEND),
        "writelines": 'await stream.send(b"".join(parts))',
        "drain": "await stream.send(data), which returns when the kernel has all of it",
        **dict.fromkeys(("read", "recv", "receive_some"), _RECEIVE),
        "readline": 'await stream.receive_until(b"\\n", max_bytes), which returns the line without its end',
        "readuntil": "await stream.receive_until(delimiter, max_bytes)",
        "readexactly": "await stream.receive_exactly(nbytes)",
        "write_eof": "await stream.send_eof()",
        **dict.fromkeys(("close", "wait_closed"), _CLOSE),
        "at_eof": _END,
        **dict.fromkeys(("get_extra_info", "remote_address", "getpeername", "getsockname"), _PEER),
    },
    "asyncserver.datagrams.datagram.Datagram": {
        **dict.fromkeys(("send", "sendto", "write", "sendall"), _REPLY),
        **dict.fromkeys(("addr", "remote_address"), "datagram.address"),
    },
}


def add_hints(exc: BaseException) -> None:
    """Add a note to an error that comes from a method of another library, if it is one."""
    if isinstance(exc, BaseExceptionGroup):
        for one in exc.exceptions:
            add_hints(one)
    elif isinstance(exc, AttributeError):
        for kind in type(exc.obj).__mro__:
            instead = _INSTEAD.get(f"{kind.__module__}.{kind.__qualname__}", {})
            if exc.name in instead:
                hint = f"{kind.__name__} has no {exc.name}; write: {instead[exc.name]}"
                if hint not in getattr(exc, "__notes__", ()):  # an error may be raised twice
                    exc.add_note(hint)
