"""Datagrams: the socket, how it is read in batches, and the task that runs many handlers."""
