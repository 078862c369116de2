"""The shapes of handlers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    from .datagrams.datagram import Datagram
    from .streams.stream import Stream

__all__ = ["DatagramHandler", "ErrorHandler", "StreamHandler"]

#: Called once for each connection.
StreamHandler: TypeAlias = Callable[["Stream"], Coroutine[Any, Any, object]]

#: Called once for each datagram; what it returns, unless None, is sent back.
DatagramHandler: TypeAlias = Callable[["Datagram"], Coroutine[Any, Any, bytes | None]]

#: Called with whatever a handler raised and the Stream or Datagram it was handling;
#: awaited if it is async.
ErrorHandler: TypeAlias = Callable[[BaseException, Union["Stream", "Datagram"]], object]
