"""An FTP server for reading, written for socketserver long ago, in an asynchronous program."""

import asyncio
import os
import socket
import socketserver

import asyncserver
import compat

ANSWERS = {"USER": "331 any password", "PASS": "230 welcome", "PWD": '257 "/"', "TYPE": "200 fine", "QUIT": "221 bye"}


class FTPHandler(socketserver.StreamRequestHandler):
    """One session, in a thread (RFC 959). Nothing in it knows of asyncserver."""

    def handle(self) -> None:
        """Answer commands, until QUIT or the client's end."""
        self.wfile.write(b"220 ready\r\n")
        with socket.create_server((self.connection.getsockname()[0], 0)) as self.transfers:
            self.transfers.settimeout(10)
            command = ""
            while command != "QUIT" and (line := self.rfile.readline(1000)):
                command, _, name = line.decode(errors="replace").strip().partition(" ")
                self.wfile.write(self.answer(command.upper(), os.path.basename(name)).encode() + b"\r\n")

    def answer(self, command: str, name: str) -> str:
        """Do what a command says."""
        if command == "PASV":
            host, port = self.transfers.getsockname()
            return f"227 at ({host.replace('.', ',')},{port // 256},{port % 256})"
        if command != "RETR":
            return ANSWERS.get(command, "502 not here")
        try:
            with self.transfers.accept()[0] as client, open(os.path.join("public", name), "rb") as file:
                self.wfile.write(b"150 it comes\r\n")
                client.settimeout(10)
                client.sendfile(file)
        except OSError as error:
            return f"550 {error.strerror or error}"
        return "226 done"


async def main() -> None:
    """Serve FTP in threads; beside it, a coroutine tells how many sessions there are."""

    async def tell(stream: asyncserver.Stream) -> None:
        await stream.send(b"%d sessions\n" % ftp.stats().active)

    old = asyncserver.serve(compat.hosted(FTPHandler), "127.0.0.1", 2121, max_connections=100, idle_timeout=300)
    beside = asyncserver.serve(tell, "127.0.0.1", 7000)
    async with old as ftp, beside as status, asyncserver.closing_on_signals(ftp, status):
        print(f"serving on {ftp.label}\nserving on {status.label}", flush=True)
        await ftp.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
