# mypy: ignore-errors
"""A threaded echo server: prints its port; options of the class as arguments `name=value`."""

import ast
import resource
import socketserver
import sys
import threading
import time


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1024):
            if data == b"slow":
                time.sleep(0.5)
            self.request.sendall(data.upper())


if __name__ == "__main__":
    options = dict(argument.split("=") for argument in sys.argv[1:])
    where = options.pop("where", "main")
    if "descriptors" in options:
        limit = int(options.pop("descriptors"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for name, value in options.items():
        setattr(socketserver.ThreadingTCPServer, name, ast.literal_eval(value))
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
    print(server.server_address[1], socketserver.__name__, flush=True)
    try:
        if where == "thread":
            threading.Thread(target=server.serve_forever, daemon=True).start()
            threading.Event().wait()
        elif where == "brief":
            threading.Thread(target=server.serve_forever, daemon=True).start()
            sys.stdin.readline()
        else:
            server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print("ended", flush=True)
