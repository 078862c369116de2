"""Known: the cells in which a promise does not hold yet. Each has to fail; one that begins to hold tells so."""

from __future__ import annotations

from dataclasses import dataclass

from tests.crossings.datagrams import DatagramWay
from tests.crossings.ways import ADAPTERS, STYLES, WIRES, Way
from tests.kit.datagrams import FAMILIES


@dataclass(frozen=True)
class Known:
    """Cells of one happening that fail for one reason."""

    happening: str
    reason: str
    styles: tuple[str, ...] = STYLES
    wires: tuple[str, ...] = (*WIRES, *FAMILIES)
    loops: tuple[str, ...] = ("asyncio", "uvloop")


_PROTOCOLS = ("protocol", "buffered")
_PLAIN, _TLS = ("tcp", "unix"), ("tls",)

_CUT_OFF = "what the kernel has not delivered yet is reset when the peer's next bytes meet the closed socket"
_COMPLETED = "nobody has a look at what the kernel has not delivered yet, and it counts as completed"
_UNREAD = "asyncio's transport closes on top of unread bytes, and the kernel resets what is not delivered yet"
_TWO_WRITES = "eof_received() of an ordinary protocol, and of callbacks under TLS, closes between two writes"
_HELD_BY_TLS = "what the loop's TLS has read of a paused protocol's is not seen in the kernel"
_FLUSH = "2 s for the end of TLS are 2 s for what is not sent yet, too"
_WRITTEN = "what has been written counts as sent, so nothing seems to move"
_SILENT = "who comes through its handshake owes a question, to the deadline"
_GONE = "uvloop's transport refuses to write once the peer has gone, which counts as the handler's error"

KNOWN = (
    Known("drain_before_a_reader_asks_again", _CUT_OFF, ADAPTERS, ("tcp",)),
    Known("drain_to_the_deadline_with_an_answer_not_taken", _COMPLETED, ADAPTERS, ("tcp", "tls")),
    Known("end_with_a_reader_who_asks_again_then", _CUT_OFF, (*ADAPTERS, "hosted"), ("tcp",)),
    Known("end_with_a_reader_who_asks_again_then", _CUT_OFF, ("hosted",), _TLS),
    Known("drain_with_a_slow_reader_who_asks_again", _UNREAD, _PROTOCOLS, _PLAIN),
    Known("drain_with_a_slow_reader_who_asks_again", _UNREAD, ADAPTERS, _TLS, ("asyncio",)),
    Known("end_with_a_reader_who_has_asked_again", _UNREAD, (*_PROTOCOLS, "hosted"), _PLAIN),
    Known("end_with_a_reader_who_has_asked_again", _UNREAD, ADAPTERS, _TLS, ("asyncio",)),
    Known("drain_between_two_writes_of_an_answer", _TWO_WRITES, _PROTOCOLS),
    Known("drain_between_two_writes_of_an_answer", _TWO_WRITES, ("callback",), _TLS),
    Known("drain_with_a_question_behind_another", _HELD_BY_TLS, _PROTOCOLS, _TLS),
    Known("end_with_a_slow_reader", _FLUSH, ADAPTERS, _TLS),
    Known("idle_but_for_a_steady_reader", _WRITTEN, ADAPTERS),
    Known("drain_in_the_handshake_of_one_who_says_nothing", _SILENT, ("stream", "hosted"), _TLS),
    Known("peer_resets_before_the_answer", _GONE, ("callback",), ("tcp",), ("uvloop",)),
)


def reason_of(happening: str, way: Way | DatagramWay, loop: str) -> str | None:
    """Why a cell is known to fail, or None."""
    for one in KNOWN:
        if one.happening == happening and way.style in one.styles and way.wire in one.wires and loop in one.loops:
            return one.reason
    return None
