"""How requests come in: the loop that waits for them, and TLS handshakes."""
