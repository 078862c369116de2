# mypy: ignore-errors
"""Forking servers: daemonised between __init__ and serve_forever, strangers' children, exit statuses."""

import os
import socket
import socketserver
import subprocess
import sys
import threading


class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            self.request[1].sendto(b"%d" % os.getpid(), self.client_address)
        else:
            self.request.sendall(b"%d" % os.getpid())
            self.server.shutdown()  # in the child: must neither hang nor stop the parent


def ask(server):
    with socket.socket(server.address_family, server.socket_type) as client:
        client.settimeout(10)
        client.connect(server.server_address)
        client.send(b"x")
        return int(client.recv(100))


def check(kind):
    stranger = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    server = getattr(socketserver, kind)(("127.0.0.1", 0), Answer)
    server.max_children = 2
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    pids = {ask(server) for _ in range(5)}
    assert len(pids) == 5 and os.getpid() not in pids
    while server.active_children:  # service_actions reaps them although nothing arrives
        threading.Event().wait(0.01)
    server.shutdown()
    thread.join()
    server.server_close()
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
        raise AssertionError("not reaped")
    assert stranger.wait(10) == 7  # whatever ended meanwhile, its status is still there
    print(kind, "fine")


if __name__ == "__main__":
    check("ForkingTCPServer")
    check("ForkingUDPServer")
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), lambda request, *_: request.sendall(b"child"))
    pid = os.fork()
    if not pid:
        os.setsid()
        server.serve_forever()
        os._exit(1)
    with socket.create_connection(server.server_address, 10) as client:
        print(client.recv(10).decode())
    os.kill(pid, 15)
    os.waitpid(pid, 0)
    server.server_close()
