"""Sockets: addresses, waiting until one is ready, waking tasks, and what the kernel knows."""
