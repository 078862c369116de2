"""Listening: sockets that wait for connections and datagrams, and what to do when they cannot."""
