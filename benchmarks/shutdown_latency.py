"""How long `shutdown()` takes on a server that was given a moment to fall asleep: the median of five, in ms.

python -m benchmarks.shutdown_latency socketserver|compat
"""

import importlib
import statistics
import sys
import threading
import time
from typing import Any


def latency(library: Any) -> float:
    """Milliseconds of one `shutdown()`."""
    with library.ThreadingTCPServer(("127.0.0.1", 0), library.BaseRequestHandler) as server:
        serving = threading.Event()
        server.service_actions = serving.set  # called once a turn, so at the first the loop is running
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        serving.wait(5)
        time.sleep(0.07)
        begin = time.perf_counter()
        server.shutdown()
        elapsed = time.perf_counter() - begin
        thread.join()
        return elapsed * 1000


if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    print(statistics.median(latency(module) for _ in range(5)))
