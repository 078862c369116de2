"""Traffic for the tests: clients in threads that ask without end, and check what becomes of each question."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Self

from tests.kit.workers import WorkerClient, ask_udp


class Load:
    """Threads that ask until told to stop. What goes wrong in one is kept, and ends it and the waiting."""

    def __init__(self, *jobs: Callable[[Counter[str]], None]) -> None:
        self.count: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._more = threading.Condition()
        self._stop = False
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]

    def _run(self, job: Callable[[Counter[str]], None]) -> None:
        while not (self._stop or self.errors):
            count: Counter[str] = Counter()
            try:
                job(count)
            except Exception as exc:
                self.errors.append(exc)
            with self._more:
                self.count += count
                self._more.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()

    def wait_for(self, name: str, further: int) -> None:
        """Wait until so much more of it has been done."""
        with self._more:
            goal = self.count[name] + further
            assert self._more.wait_for(lambda: self.count[name] >= goal or self.errors, 30), self.count


class Traffic(Load):
    """Clients of a server, or of what stands before it. Each checks its answers and that the handler sees its address.

    Args:
        place: where the server is reached.
        datagrams: how many clients ask over UDP, too.
        stopping: whether the server is going to stop, and may refuse connections then.
    """

    def __init__(self, place: tuple[str, int], *, datagrams: int = 0, stopping: bool = False) -> None:
        jobs = [self._once] * 16 + [self._hesitate] * 8 + [self._often] * 8 + [self._datagram] * datagrams
        super().__init__(*jobs)
        self.answered: set[str] = set()
        self.crossed: set[str] = set()
        self._place = place
        self._stopping = stopping
        self._hosts = itertools.cycle(range(2, 200))

    def check(self, received: Iterable[str]) -> None:
        """Every question that was received has been answered; `received` are the lines that handlers wrote down."""
        assert not self.errors, self.errors
        names = {line.split()[0] for line in received}
        assert self.answered <= names
        assert not self.crossed & names

    def _connect(self, count: Counter[str]) -> WorkerClient | None:
        try:
            return WorkerClient(self._place, host=f"127.0.0.{next(self._hosts)}")
        except ConnectionRefusedError:
            if not self._stopping:
                raise
            self._stop = True
            return None

    def _ask(self, client: WorkerClient, count: Counter[str], size: int, seconds: float) -> None:
        client.ask(size, seconds)
        self.answered.add(client.name)
        count["answered"] += 1

    def _once(self, count: Counter[str], hesitation: float = 0) -> None:
        """Ask over a new connection: once there is one, there is no excuse."""
        client = self._connect(count)
        if client is not None:
            with client:
                time.sleep(hesitation)
                self._ask(client, count, 20_000, 0)

    def _hesitate(self, count: Counter[str]) -> None:
        """Ask over a new connection, after what the way of the first bytes may take in a larger network."""
        self._once(count, 0.005)

    def _often(self, count: Counter[str]) -> None:
        """Ask again and again over one connection, unless the server has ended it, which it may between answers."""
        client = self._connect(count)
        if client is None:
            return
        with client:
            self._ask(client, count, 1_000, 0)
            for _ in range(50):
                if client.at_end():
                    count["left"] += 1
                    return
                try:
                    self._ask(client, count, 1_000, 0.001)
                except ConnectionError:  # the question and the end have met on the way: it must not have arrived
                    self.crossed.add(client.name)
                    count["crossed"] += 1
                    return

    def _datagram(self, count: Counter[str]) -> None:
        """Ask over UDP, from a new port."""
        assert ask_udp(self._place, b"question")[2] == b"question"
        count["datagrams"] += 1
