"""Streams: connections as handlers see them, with TLS, the PROXY header and the drain."""
