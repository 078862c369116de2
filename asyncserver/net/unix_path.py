"""The file of a Unix socket: a dead server's is replaced, never a live one's; bind() sets its mode.

Other users may be able to write to the folder. They can put a socket of their own in its place,
which cannot be prevented here. But no file of another kind is removed, and the mode of no file but
our own is changed, whatever they link to.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from ..exceptions import BindError


def bind(sock: socket.socket, path: str, mode: int | None) -> None:
    """Bind a new Unix socket to a path; its file has this mode, or (None) what the umask leaves.

    Raises:
        BindError: the path belongs to a running server, or is not a socket.
    """
    _remove_stale(path, sock.type)
    if mode is not None:
        # Linux makes the file with the socket's own mode, less the umask. A mode set after bind()
        # would be too late: until then peers could send to a datagram socket.
        os.fchmod(sock.fileno(), mode)
    sock.bind(path)
    if mode is not None and stat.S_IMODE(os.lstat(path).st_mode) != mode:
        try:
            _set_mode(path, mode)
        except BaseException:
            os.unlink(path)
            raise


def _set_mode(path: str, mode: int) -> None:
    """Change the permissions of a socket, and of nothing that has been put in its place."""
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            raise BindError(errno.EADDRINUSE, f"{path!r} was replaced while it was bound: choose a folder of your own")
        os.chmod(f"/proc/self/fd/{file}", mode)  # fchmod() refuses O_PATH descriptors: open(2)
    finally:
        os.close(file)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: str, kind: int) -> None:
    """Remove the socket file of a dead server; raise BindError for any other file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError(errno.EEXIST, f"{path!r} exists and is not a socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:  # no process has it open: unix(7)
            if identity(path) == (status.st_dev, status.st_ino):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # alive, and its backlog is full
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:  # alive, but of the other kind
                raise
    raise BindError(errno.EADDRINUSE, f"{path!r} belongs to a running server: stop it, or choose another path")
