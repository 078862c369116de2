"""Context variables of handlers: what a new thread would see, although threads are used again."""

import sys
from pathlib import Path

import pytest

from tests.kit.programs import python

OPTIONS = [
    [],
    *([["-X", f"thread_inherit_context={value}"] for value in (0, 1)] if sys.version_info >= (3, 14) else []),
]

SERVER = """
import contextvars, importlib, socket, sys, threading
module = importlib.import_module(sys.argv[1])
variable = contextvars.ContextVar("variable", default="nothing")

def handler(request, *_):
    request.sendall(variable.get().encode())
    variable.set("an earlier handler's")

def serve():
    variable.set("the serving thread's")
    server.serve_forever(0.02)

variable.set("the main thread's")
with module.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(3):
        with socket.create_connection(server.server_address, timeout=20) as client:
            print("".join(iter(lambda: client.recv(100).decode(), "")))
    server.shutdown()
    thread.join()
"""


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_handlers_see_what_a_new_thread_sees(options: list[str], tmp_path: Path) -> None:
    """With compat as with socketserver: nothing, or a copy of the serving thread's, and nothing of each other's."""
    (tmp_path / "server.py").write_text(SERVER)
    seen = [
        python(*options, tmp_path / "server.py", module).stdout.split("\n") for module in ("socketserver", "compat")
    ]
    inherit = options[-1:] == ["thread_inherit_context=1"] or (not options and inherits_by_default())
    assert seen == [["the serving thread's" if inherit else "nothing"] * 3 + [""]] * 2


def inherits_by_default() -> bool:
    return bool(getattr(sys.flags, "thread_inherit_context", 0))


POOL = """
import contextvars, gc, time, weakref
from compat import ThreadPool

class Thing: pass

thing, variable = Thing(), contextvars.ContextVar("variable", default=None)
seen = weakref.ref(thing)

def ask():
    variable.set(thing)
    return pool.submit(lambda: variable.get() is thing).result()

with ThreadPool() as pool:
    print(contextvars.copy_context().run(ask))
    assert pool.alive == 1
    del thing
    deadline = time.monotonic() + 20
    while seen() is not None:
        assert time.monotonic() < deadline, gc.get_referrers(seen())
        gc.collect()
    assert pool.alive == 1
"""


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_an_idle_thread_keeps_no_context_alive(options: list[str], tmp_path: Path) -> None:
    """Neither that of its last call nor that of whoever started it."""
    (tmp_path / "pool.py").write_text(POOL)
    inherit = options[-1:] == ["thread_inherit_context=1"] or (not options and inherits_by_default())
    assert python(*options, tmp_path / "pool.py").stdout == f"{inherit}\n"
