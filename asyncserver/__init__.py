"""TCP, UDP, Unix and TLS servers for asyncio."""
