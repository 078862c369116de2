"""Connections: what streams and protocols stand on: a socket's watches, TLS, the drain, its end."""
