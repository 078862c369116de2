"""The kernel: what Linux does for sockets beyond other systems, and not every Linux does."""
