"""A process for each request, as in the standard library, but only its own children are reaped."""

import os
import select
import socketserver
import sys
import time
from collections.abc import Iterable

from compat.intake.overrides import trust
from compat.servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer, redeclares

trust(__name__)


@redeclares
class ForkingMixIn(socketserver.ForkingMixIn):
    """A process for each request, as in `socketserver`; it never touches its parent's loop."""

    def server_close(self) -> None:
        """Close the listener and reap the children; with `block_on_close` wait for them."""
        super().server_close()
        self.collect_children(blocking=self.block_on_close)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap our children that have ended; with `max_children` of them, wait until one has.

        The stdlib waits there for any child of the process, and so takes away the exit status of
        children that are not its own.
        """
        while self.active_children and len(self.active_children) >= self.max_children:
            _wait_for_one(list(self.active_children))
            self._compat_reap(os.WNOHANG)
        self._compat_reap(0 if blocking else os.WNOHANG)

    def _compat_reap(self, flags: int) -> None:
        for pid in list(self.active_children or ()):
            try:
                ended, _ = os.waitpid(pid, flags)
            except ChildProcessError:  # the program has reaped it
                ended = pid
            if ended and self.active_children is not None:
                self.active_children.discard(ended)

    def _compat_ticks(self) -> bool:
        return bool(self.active_children) or bool(super()._compat_ticks())  # type: ignore[misc]


def _wait_for_one(pids: Iterable[int]) -> None:
    """Wait until one of these children has ended, and leave its exit status where it is."""
    descriptors: list[int] = []
    ended = select.poll()
    try:
        for pid in pids:
            descriptors.append(os.pidfd_open(pid))
            ended.register(descriptors[-1], select.POLLIN)
        ended.poll()
    except ProcessLookupError:  # the program has reaped it
        return
    except (OSError, AttributeError):  # no descriptors left, or a system without pidfd
        time.sleep(0.01)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class ForkingTCPServer(ForkingMixIn, TCPServer, socketserver.ForkingTCPServer):
    """A TCP server with a process for each connection."""


class ForkingUDPServer(ForkingMixIn, UDPServer, socketserver.ForkingUDPServer):
    """A UDP server with a process for each datagram."""


# The stdlib has these two from Python 3.12 on, and we in 3.11 as well.
if sys.version_info >= (3, 12):

    class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer, socketserver.ForkingUnixStreamServer):
        """A Unix stream server with a process for each connection."""

    class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer, socketserver.ForkingUnixDatagramServer):
        """A Unix datagram server with a process for each datagram."""

else:

    class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
        """A Unix stream server with a process for each connection."""

    class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
        """A Unix datagram server with a process for each datagram."""
