"""The name of a Unix socket, and its file: a dead server's is replaced, never a live one's.

A name that begins with a NUL is abstract: Linux keeps it, and no file has it. People write @ for
the NUL, as `ss` shows it.

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
from ..net.addresses import format_address

# In bytes: sun_path in unix(7) has 108. A zero ends a path, and is the first of an abstract name.
_LONGEST_PATH = 107
_LONGEST_NAME = 108
_DESCRIPTORS = "/proc/self/fd"


def check(path: object, mode: object) -> None:
    """Raise TypeError or ValueError for what cannot be a path, or the mode of its file."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    if path is not None and not os.fspath(path):
        raise ValueError("path must not be empty: Linux would serve on a name of its own making")
    if isinstance(path, str) and path in {"@", "\0"}:
        raise ValueError(f"path={path!r} is no name: write what it is called behind the @, or ./@ for a file")
    if mode is None:
        return
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"path_mode must be a whole number, such as 0o660, got {mode!r}")
    if not 0 <= mode <= 0o777:
        meant = f"{mode} in decimal: 0o{mode}?" if str(mode) in {f"{one:o}" for one in range(0o1000)} else f"{mode:#o}"
        raise ValueError(f"path_mode must be permissions from 0o000 to 0o777, got {meant}")
    if path is None:
        raise TypeError(f"path_mode={mode:#o} is for a Unix socket: it needs path")
    if (found := name(path)).startswith("\0"):
        raise ValueError(
            f"path_mode={mode:#o} (--unix-mode) cannot protect {shown(found)}: an abstract name has no file, and every "
            "user of this host can connect to it; give a path"
        )


def name(path: str | os.PathLike[str]) -> str:
    """Return the name to bind to: "@name" is abstract, a Path never, which drops the ./ of ./@."""
    return "\0" + path[1:] if isinstance(path, str) and path.startswith("@") else os.fspath(path)


def shown(name: str) -> str:
    """Return the name as an error shows it."""
    return repr(format_address(name)) if name.startswith("\0") else repr(name)


def check_length(name: str) -> None:
    """Raise BindError for a name that is too long for an address."""
    length, abstract = len(os.fsencode(name)), name.startswith("\0")
    if length > (longest := _LONGEST_NAME if abstract else _LONGEST_PATH):
        advice = "" if abstract else ", or one relative to the current folder"
        raise BindError(
            errno.ENAMETOOLONG,
            f"cannot listen on Unix socket {shown(name)}: the {'name' if abstract else 'path'} is too long, {length} "
            f"bytes of at most {longest} (unix(7)): choose a shorter one{advice}",
        )


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
        os.chmod(f"{_DESCRIPTORS}/{file}", mode)  # fchmod() refuses O_PATH descriptors: open(2)
    except FileNotFoundError as exc:
        if os.path.exists(_DESCRIPTORS):
            raise
        raise BindError(
            errno.ENOENT, f"mode {mode:o} of {path!r} is more than the umask leaves: that needs /proc, or another umask"
        ) from exc
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
