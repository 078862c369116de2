"""The kernel: what Linux, and not every kernel of it, does for sockets beyond what all systems do."""
