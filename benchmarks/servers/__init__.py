"""One small server per peer, each with the command line of `contract.py`.

The servers are written as their libraries' documentation teaches, with three things equal for all: a backlog
of 4096 (so that no client ever waits for a repeated SYN), TCP_NODELAY, and 1 MiB asked for as a datagram
socket's buffer.
"""
