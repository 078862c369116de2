"""Servers: limits, handlers and their ends, statistics, and the fields of log records."""
