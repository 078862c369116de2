"""Draws docs/live.svg: what `python -m asyncserver.live` shows of a real server under a real load.

`make picture` runs it, for three quarters of a minute. The picture is made of text, so it can be
read aloud and copied.
"""

from __future__ import annotations

import math
import random
import re
import socket
import subprocess
import sys
import threading
import time
from html import escape
from pathlib import Path

from asyncserver import live

FOLDER = Path(__file__).parent
REFRESHES, SECONDS, COLUMNS = 40, 1.0, 132
# The width of a character and the height of a line, in pixels.
WIDTH, HEIGHT, BORDER = 7.25, 20, 16

# What the server runs: an echo that takes a while, as one that asks a database would.
APP = """
import asyncio, random, asyncserver

async def handler(source):
    if isinstance(source, asyncserver.Datagram):
        return source.data.upper()
    async for data in source:
        await asyncio.sleep(random.expovariate(150))
        await source.send(data.upper())
"""

# ANSI's codes, as live.py uses them, and their colours on a dark page.
COLOURS = {"1": "#f0f6fc", "2": "#9198a1", "31": "#ff7b72", "32": "#3fb950", "36": "#39c5cf", "0": "#d1d7e0"}
STYLE = "text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }"


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def ask(port: int, end: threading.Event) -> None:
    """Connect, ask, leave; ever more and then ever less of it."""
    while not end.is_set():
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            for _ in range(random.randint(1, 4)):
                client.sendall(b"hello" * random.randint(1, 400))
                client.recv(4096)
        end.wait(0.08 + 0.075 * math.sin(time.monotonic() / 3))


def send(port: int, end: threading.Event) -> None:
    """Send datagrams in small bursts, and take the answers."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        while not end.is_set():
            burst = random.randint(1, 12)
            for _ in range(burst):
                client.send(b"hello")
            for _ in range(burst):
                client.recv(99)
            end.wait(0.02)


def watch(url: str) -> list[str]:
    """Look as often as the picture shows bars; returns the last lines."""
    view = live.View(url)
    for _ in range(REFRESHES):
        time.sleep(SECONDS)
        view.update(live.fetch(url), time.monotonic())
    return view.lines(COLUMNS, colour=True)


def drawn(line: str, y: float) -> str:
    """Turn a line with ANSI's codes into SVG's text."""
    parts, x, colour, bold = [], float(BORDER), COLOURS["0"], False
    for code, text in re.findall(r"(?:\x1b\[(\d+)m)?([^\x1b]*)", line):
        if code:
            colour, bold = COLOURS[code], code == "1"
        weight = ' font-weight="bold"' if bold else ""
        for word in re.finditer(r"\S+(?: \S+)*", text):  # each in its column, whatever the font
            start, length = x + word.start() * WIDTH, len(word[0]) * WIDTH
            place = f'x="{start:.1f}" y="{y:.0f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
            parts.append(f'<text {place} fill="{colour}"{weight}>{escape(word[0])}</text>')
        x += len(text) * WIDTH
    return "\n".join(parts)


def picture(lines: list[str]) -> str:
    """Draw a terminal that shows these lines."""
    width, height = round(COLUMNS * WIDTH) + 2 * BORDER, len(lines) * HEIGHT + 2 * BORDER
    rows = [drawn(line, BORDER + (number + 0.7) * HEIGHT) for number, line in enumerate(lines)]
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
                'aria-label="The live view of a server with two workers">'
            ),
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#151b23"/>',
            *filter(None, rows),
            "</svg>\n",
        ]
    )


def main() -> None:
    """Serve, load, look, draw."""
    tcp, udp, monitor = free_ports(3)
    places = [f"--tcp=127.0.0.1:{tcp}", f"--udp=127.0.0.1:{udp}", f"--metrics=127.0.0.1:{monitor}"]
    app = FOLDER / "picture_app.py"
    app.write_text(APP)
    command = [sys.executable, "-m", "asyncserver", "picture_app:handler", "--workers=2", "--log-level=warning"]
    end = threading.Event()
    with subprocess.Popen([*command, *places], cwd=FOLDER) as program:
        try:
            time.sleep(2)
            jobs = [(ask, tcp)] * 20 + [(send, udp)] * 4
            threads = [threading.Thread(target=job, args=(port, end), daemon=True) for job, port in jobs]
            for thread in threads:
                thread.start()
            lines = watch(f"http://127.0.0.1:{monitor}")
            end.set()
            for thread in threads:
                thread.join()
        finally:
            end.set()
            program.terminate()
            app.unlink()
    # The ports of a reader who tries it.
    shown = {f":{tcp}": ":7000", f":{udp}": ":7000", f":{monitor}": ":9100"}
    lines = [re.sub("|".join(shown), lambda found: shown[found[0]], line) for line in lines]
    (FOLDER / "live.svg").write_text(picture(lines))


if __name__ == "__main__":
    main()
