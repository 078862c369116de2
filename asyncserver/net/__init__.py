"""Sockets: addresses, binding, accepting, and waiting until one is ready."""
