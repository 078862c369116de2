# mypy: ignore-errors
# ruff: noqa: N802, UP031
"""A small FTP server as people write them on socketserver: a session per thread, state in the handler."""

import os
import socket
import socketserver
import sys


class FTPHandler(socketserver.StreamRequestHandler):
    """One session: logged in or not, a current folder, a passive listener between PASV and the transfer."""

    def setup(self):
        super().setup()
        self.user, self.folder, self.passive, self.running = None, "/", None, True

    def handle(self):
        self.reply("220 ready")
        while self.running:
            line = self.rfile.readline().decode().strip()
            if not line:
                break
            command, _, argument = line.partition(" ")
            method = getattr(self, "do_" + command.upper(), None)
            if method is None:
                self.reply("502 not implemented")
            elif self.user is None and command.upper() not in {"USER", "QUIT"}:
                self.reply("530 log in first")
            else:
                method(argument)

    def finish(self):
        if self.passive:
            self.passive.close()
        super().finish()

    def reply(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def path(self, name):
        inside = os.path.normpath(os.path.join(self.folder, name))
        return inside, os.path.join(self.server.root, inside.lstrip("/"))

    def transfer(self, work):
        self.reply("150 here it comes")
        connection, _ = self.passive.accept()
        with connection:
            work(connection)
        self.passive.close()
        self.passive = None
        self.reply("226 done")

    def do_USER(self, name):
        self.user = name
        self.reply("331 password, please")

    def do_PASS(self, _):
        self.reply("230 welcome, " + self.user)

    def do_TYPE(self, _):
        self.reply("200 fine")

    def do_PWD(self, _):
        self.reply('257 "%s"' % self.folder)

    def do_CWD(self, name):
        inside, path = self.path(name)
        if not os.path.isdir(path):
            self.reply("550 no such folder")
            return
        self.folder = inside
        self.reply("250 moved")

    def do_MKD(self, name):
        inside, path = self.path(name)
        os.mkdir(path)
        self.reply('257 "%s"' % inside)

    def do_PASV(self, _):
        self.passive = socket.create_server((self.connection.getsockname()[0], 0))
        port = self.passive.getsockname()[1]
        self.reply("227 passive (127,0,0,1,%d,%d)" % divmod(port, 256))

    def do_NLST(self, _):
        names = sorted(os.listdir(self.path("")[1]))
        self.transfer(lambda connection: connection.sendall("".join(n + "\r\n" for n in names).encode()))

    def do_RETR(self, name):
        with open(self.path(name)[1], "rb") as source:
            self.transfer(lambda connection: connection.sendfile(source))

    def do_STOR(self, name):
        def store(connection):
            with open(self.path(name)[1], "wb") as target, connection.makefile("rb") as source:
                target.write(source.read())

        self.transfer(store)

    def do_QUIT(self, _):
        self.running = False
        self.reply("221 bye, " + (self.user or "stranger"))


if __name__ == "__main__":
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), FTPHandler)
    server.root = sys.argv[1]
    print(server.server_address[1], flush=True)
    server.serve_forever()
