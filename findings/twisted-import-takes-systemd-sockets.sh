#!/usr/bin/env bash
# Twisted 26.10.0: `import twisted.internet.endpoints` removes LISTEN_PID and LISTEN_FDS from the
# environment, whether or not the program lets Twisted listen on anything.
#
# Expected: an import changes nothing for others. sd_listen_fds(3) lets the caller choose whether the
# variables go (`unset_environment`); Twisted's how-to for systemd tells of inherited sockets only for
# endpoints "systemd:...", and nowhere that a program without one loses them.
# Met: a class reads them as it is defined, and reading removes them. Whoever asks afterwards, here
# gunicorn's function, finds no sockets. LISTEN_FDNAMES stays, for child processes as well. The same
# by `import twisted.web.client`, which needs endpoints; the reactor alone does not.
# Output seen:
#     before: LISTEN_FDS=2, gunicorn finds 2 sockets
#     after the reactor: LISTEN_FDS=2, gunicorn finds 2 sockets
#     after endpoints: LISTEN_FDS=None, gunicorn finds 0 sockets, LISTEN_FDNAMES=web:admin
# For us: our command line reads them before it imports the application; a program has to call
# `systemd_sockets()` before it imports what uses Twisted, else the list is empty:
# docs/systemd/README.md.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check twisted==26.10.0 gunicorn==27.0.1 || exit 2
cat > "$folder/started.py" <<'PYTHON'
import os
import sys

from gunicorn.systemd import listen_fds


def tell(when):
    found = listen_fds(unset_environment=False)
    names = os.environ["LISTEN_FDNAMES"]
    count = os.environ.get("LISTEN_FDS")
    print(f"{when}: LISTEN_FDS={count}, gunicorn finds {found} sockets" + f", LISTEN_FDNAMES={names}" * (not count))
    return found


found = [tell("before")]
from twisted.internet import reactor  # noqa: E402, F401

found.append(tell("after the reactor"))
import twisted.internet.endpoints  # noqa: E402, F401

found.append(tell("after endpoints"))
sys.exit(found != [2, 2, 0])
PYTHON
cat > "$folder/start.py" <<'PYTHON'
"""Starts a program as systemd does: sockets from descriptor 3 on, and who they are for."""

import os
import socket
import sys

opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for number, sock in enumerate(opened):  # out of the way
    os.dup2(sock.fileno(), 10 + number)
for number in range(2):
    os.dup2(10 + number, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:admin")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
PYTHON
"$folder/venv/bin/python" "$folder/start.py" "$folder/started.py"
