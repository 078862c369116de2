"""A live view of running servers: `python -m asyncserver.live [HOST:PORT]` shows their /metrics.

It asks each second over HTTP, so the program may run in any number of workers, and on another
machine. It needs only the standard library; an output that is not a terminal gets plain lines.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import math
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# A row of the table: a server, and one of its workers or "" for all of them.
Place: TypeAlias = tuple[str, str]
PROGRAM: Place = ("", "")
Numbers: TypeAlias = dict[str, float]

_SAMPLE = re.compile(r"asyncserver_(\w+?)(?:_total)?(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MINUTE = 60  # refreshes that the sparkline shows at most
_RECENT = 10  # refreshes that percentiles cover: over fewer they jump about
_TIMEOUT = 5.0  # seconds for an answer
# Without the environment's proxies: they do not reach a program's metrics.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_UNKNOWN = "-"  # a rate, when there is one reading
_BARS = "▁▂▃▄▅▆▇█"
_BOLD, _DIM, _RED, _GREEN, _CYAN, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[36m", "\x1b[0m"
# To the alternate screen, without a cursor, with long lines cut off; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"

_HEADINGS = ("SERVER", "RATE", "ACTIVE", "IN", "OUT", "P50", "P99", "FAILED", "REFUSED", "DROPPED", "THREADS")
# The numbers in FAILED, REFUSED and DROPPED, which should not grow.
_TROUBLES = ("handlers_ended failed", "connections_refused", "datagrams_dropped")


def parse(text: str) -> dict[Place, Numbers]:
    """Read Prometheus's text format: our numbers for each server and worker, and their sums."""
    found: dict[Place, Numbers] = defaultdict(lambda: defaultdict(float))
    for line in text.splitlines():
        if sample := _SAMPLE.fullmatch(line):
            labels = dict(_LABEL.findall(sample[2] or ""))
            server, worker = _printable(labels.pop("server", "")), _printable(labels.pop("worker", ""))
            name = " ".join((sample[1], *labels.values()))
            for place in {(server, worker), (server, "")}:
                found[place][name] += float(sample[3])
    return found


def _printable(text: str) -> str:
    """Replace characters that would control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Row:
    """One place: its last numbers, and earlier ones for rates."""

    def __init__(self) -> None:
        self.now: Numbers = {}
        self._past: deque[Numbers] = deque(maxlen=_RECENT)
        self._seconds = 1.0
        self.rates: deque[float] = deque(maxlen=_MINUTE)

    def update(self, numbers: Numbers, seconds: float) -> None:
        """Take new numbers, `seconds` after the last."""
        if numbers.get(self.work, 0) < self.now.get(self.work, 0):  # the program was restarted
            self._past.clear()
        elif self.now:
            self._past.append(self.now)
        self.now, self._seconds = numbers, seconds
        if (rate := self.rate(self.work)) is not None:
            self.rates.append(rate)

    @property
    def work(self) -> str:
        """The counter that RATE shows."""
        return "datagrams_received" if "datagrams_received" in self.now else "connections_accepted"

    def rate(self, name: str) -> float | None:
        """A counter's growth in the last interval, per second; None after the first reading."""
        if not self._past:
            return None
        return max(0.0, self.now.get(name, 0) - self._past[-1].get(name, 0)) / self._seconds

    def percentile(self, share: float) -> float | None:
        """Seconds in which this share of the last handlers ended, interpolated as in Prometheus."""
        before = self._past[0] if self._past else {}
        prefix = "handler_duration_seconds_bucket "
        counts = sorted(
            (float(name.removeprefix(prefix)), count - before.get(name, 0))
            for name, count in self.now.items()
            if name.startswith(prefix)
        )
        if not counts or not counts[-1][1] > 0:
            return None
        wanted = share * counts[-1][1]
        lower, below = 0.0, 0.0
        for bound, count in counts:
            if count >= wanted and count > below:
                return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return None

    def cells(self) -> list[str]:
        """The cells of its row, without the name and the sparkline."""
        now = self.now
        unit = "msg/s" if self.work == "datagrams_received" else "conn/s"
        rate = self.rate(self.work)
        per_second = [_bytes(self.rate(name)) if name in now else "" for name in ("received_bytes", "sent_bytes")]
        threads = f"{now['pool_threads']:.0f}" if "pool_threads" in now else ""
        if waiting := now.get("pool_waiting", 0):
            threads += f" +{waiting:.0f} wait"
        if now.get("pool_starved", 0):
            threads += " starved"
        return [
            _UNKNOWN if rate is None else f"{rate:,.0f} {unit}",
            f"{now.get('handlers_active', 0):,.0f}",
            *per_second,
            *(_duration(self.percentile(share)) for share in (0.5, 0.99)),
            *(f"{now[name]:,.0f}" if name in now else "" for name in _TROUBLES),
            threads,
        ]

    def alarms(self) -> list[bool]:
        """Which of the cells show trouble: counters that grow, a pool short of threads."""
        shortage = self.now.get("pool_waiting", 0) + self.now.get("pool_starved", 0)
        return [False] * 6 + [*((self.rate(name) or 0) > 0 for name in _TROUBLES), shortage > 0]


class NoMetricsError(OSError):
    """The address answers, but has no metrics: asking again is of no use."""


class View:
    """The screen: a title and a table."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rows: dict[Place, Row] = {}
        self.error: str = ""
        self._updated = -math.inf

    def update(self, text: str, now: float) -> None:
        """Take an answer that came at this time."""
        seconds, self._updated, self.error = now - self._updated, now, ""
        found = parse(text)
        self.rows = {place: self.rows.get(place) or Row() for place in found}
        for place, row in self.rows.items():
            row.update(found[place], seconds)

    def lines(self, width: int, *, colour: bool) -> list[str]:
        """Draw it, at most `width` columns wide if possible."""

        def paint(code: str, text: str) -> str:
            return f"{code}{text}{_PLAIN}" if colour else text

        visible = self._visible_rows()
        if not visible:
            return [self._title(paint)]
        table = [[f"  worker {worker}" if worker else server, *row.cells()] for (server, worker), row in visible]
        alarms = [[False, *row.alarms()] for _, row in visible]
        filled = [column for column in range(len(_HEADINGS)) if any(cells[column] for cells in table)]
        widths = [max(len(cells[column]) for cells in (_HEADINGS, *table)) for column in filled]
        bars = min(_MINUTE, width - sum(widths) - 2 * len(widths))
        last_minute = f"  {'LAST MINUTE':{bars}}" if bars >= len("LAST MINUTE") else ""
        headings = _padded([_HEADINGS[column] for column in filled], widths)
        lines = [self._title(paint), "", paint(_DIM, "  ".join(headings) + last_minute)]
        for ((_, worker), row), cells, bad in zip(visible, table, alarms, strict=True):
            first, *rest = _padded([cells[column] for column in filled], widths)
            rest = [paint(_RED, cell) if bad[column] else cell for cell, column in zip(rest, filled[1:], strict=True)]
            drawn = "  " + paint(_CYAN, sparkline(list(row.rates)[-bars:])) if last_minute else ""
            lines.append("  ".join([paint(_DIM if worker else _BOLD, first), *rest]) + drawn)
        return lines

    def _visible_rows(self) -> list[tuple[Place, Row]]:
        """Servers, each followed by its workers if it has several, in the order of the metrics."""
        places: list[Place] = []
        for server in dict.fromkeys(server for server, _ in self.rows if server):
            workers = [(one, worker) for one, worker in self.rows if one == server and worker]
            places += [(server, ""), *(workers if len(workers) > 1 else ())]
        return [(place, self.rows[place]) for place in places]

    def _title(self, paint: Callable[[str, str], str]) -> str:
        name = paint(_BOLD, "asyncserver")
        if self.error:
            return f"{name} at {self.url}: " + paint(_RED, self.error)
        now = self.rows[PROGRAM].now if PROGRAM in self.rows else {}
        ready = paint(_GREEN, "ready") if now.get("ready") else paint(_RED, "not ready")
        workers, deaths = int(now.get("workers", 0)), int(now.get("worker_deaths", 0))
        parts = [f"{workers} process{'' if workers == 1 else 'es'}", *([f"{deaths} died so far"] if deaths else [])]
        return f"{name} at {self.url}: {ready}, {', '.join(parts)}"


def sparkline(values: Sequence[float]) -> str:
    """Draw values as bars: the highest is a full bar, 0 the lowest."""
    top = max(values, default=0.0)
    return "".join(_BARS[math.ceil(value / top * (len(_BARS) - 1))] if top > 0 else _BARS[0] for value in values)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{cells[0]:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))]


def _bytes(number: float | None) -> str:
    if number is None:
        return _UNKNOWN
    for unit in ("B/s", "kB/s", "MB/s"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB/s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0)):
        if seconds < {"us": 1e-3, "ms": 1.0, "s": 120.0}.get(unit, 7200.0):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


# -- the program


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the view until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m asyncserver.live", description=__doc__)
    parser.add_argument("place", nargs="?", default="127.0.0.1:9100", metavar="HOST:PORT",
                        help="what --metrics of the servers says, or a URL (default: %(default)s)")  # fmt: skip
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between refreshes (default: 1)")
    parser.add_argument("--count", type=int, metavar="N", help="leave after so many refreshes")
    options = parser.parse_args(arguments)
    if not options.interval > 0:
        parser.error(f"--interval must be more than 0 seconds, got {options.interval}")
    place = options.place if "://" in options.place else f"http://{options.place}"
    if not re.fullmatch(r"https?://.+" if place == options.place else r"http://.+:\d+(/.*)?", place):
        parser.error(f"expected HOST:PORT, such as 127.0.0.1:9100, or a URL of http or https; got {options.place!r}")
    view = View(place.removesuffix("/").removesuffix("/metrics"))
    try:
        _show(view, options.interval, itertools.count() if options.count is None else range(options.count))
    except (KeyboardInterrupt, BrokenPipeError):  # BrokenPipeError: `| head`
        return 0
    except NoMetricsError as exc:
        print(f"{parser.prog}: {view.url}: {exc}", file=sys.stderr)
        return 1
    return 1 if view.error else 0


def _show(view: View, interval: float, refreshes: Iterable[int]) -> None:
    terminal = sys.stdout.isatty()
    print(_ENTER if terminal else "", end="")
    try:
        for number in refreshes:
            if number:
                time.sleep(interval)
            try:
                view.update(fetch(view.url), time.monotonic())
            except NoMetricsError:
                raise
            except (OSError, ValueError) as exc:  # ValueError: a broken URL or answer
                view.error = str(exc)
            lines = view.lines(shutil.get_terminal_size((120, 24)).columns, colour=terminal)
            # Cursor home, then clear each line's rest and the screen's: nothing flickers.
            print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J" if terminal else "\n".join(lines),
                  end="" if terminal else "\n\n", flush=True)  # fmt: skip
    finally:
        print(_LEAVE if terminal else "", end="", flush=True)


def fetch(url: str) -> str:
    """Ask for the metrics of each worker.

    Raises:
        NoMetricsError: the program has none: it lacks prometheus-client, or is another program.
        OSError: no answer, or an error; the message says why.
    """
    try:
        with _direct.open(f"{url}/metrics?by=worker", timeout=_TIMEOUT) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as exc:
        with exc:
            kind = NoMetricsError if exc.code in {HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED} else OSError
            detail = _printable(exc.read(200).decode(errors="replace").strip())
            raise kind(f"{exc.code} {exc.reason}: {detail}") from exc
    except urllib.error.URLError as exc:
        raise OSError(str(exc.reason)) from exc
    except http.client.HTTPException as exc:  # not HTTP, or cut off
        raise OSError(f"expected the address of --metrics, got {exc!r}") from exc


if __name__ == "__main__":
    sys.exit(main())
