"""A TCP server in a FastAPI program: sensors report over TCP, and browsers ask over HTTP.

Needs fastapi and uvicorn. Try it: echo "kitchen 21" | nc 127.0.0.1 7000
and then: curl http://127.0.0.1:8000/readings/kitchen
"""

import contextlib
from collections.abc import AsyncIterator

import fastapi
import uvicorn

import asyncserver

readings: dict[str, int] = {}


async def sensor(stream: asyncserver.Stream) -> None:
    """Take readings, `NAME NUMBER` a line; the first line that is none ends the connection."""
    while True:
        line = await stream.receive_until(b"\n", max_bytes=100)
        match line.decode(errors="replace").split():
            case [name, value] if value.isdecimal() and (name in readings or len(readings) < 10_000):
                readings[name] = int(value)
                stream.end_message()  # it gets no answer: a drain need not wait for one
            case _:
                return await stream.send(b"expected a name and a whole number\n")


@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Serve sensors as long as HTTP: bound before the first request, drained after the last."""
    async with asyncserver.serve(sensor, "127.0.0.1", 7000, max_connections=1000, drain_timeout=5) as server:
        app.state.sensors = server
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/readings/{name}")
async def reading(name: str) -> int:  # async: a plain function would run in a thread, beside the loop
    """Return the last reading of a sensor."""
    if name not in readings:
        raise fastapi.HTTPException(404, f"no sensor {name} has reported")
    return readings[name]


@app.get("/sensors")
async def sensors() -> dict[str, int]:
    """Return how many sensors are connected, and how many have been."""
    stats = app.state.sensors.stats()
    return {"connected": stats.active, "accepted": stats.accepted}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000)
