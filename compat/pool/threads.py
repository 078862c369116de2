"""The threads that a pool has started and a server may have to join."""

import threading
from collections.abc import Iterator


class JoinableThreads:
    """Threads to join; each step is one operation on a dict, so any thread may do it any time."""

    def __init__(self) -> None:
        self._threads: dict[threading.Thread, None] = {}
        self._reap_at = 16

    def __len__(self) -> int:
        return len(self._threads)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(list(self._threads))

    def append(self, thread: threading.Thread) -> None:
        """Remember a thread that has started."""
        if len(self) >= self._reap_at:  # the number has doubled: so it costs little per thread
            self.reap()
            self._reap_at = 2 * len(self) + 16
        self._threads[thread] = None

    def reap(self) -> None:
        """Forget the threads that have ended."""
        for thread in self:
            if not thread.is_alive():
                self._threads.pop(thread, None)

    def join(self) -> None:
        """Wait for all threads, also for those that they start meanwhile.

        Raises:
            RuntimeError: one of them is the calling thread.
        """
        while self._threads:
            for thread in self:
                self._threads.pop(thread, None)
                thread.join()
