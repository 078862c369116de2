"""Metrics for Prometheus, probes over HTTP, systemd's notifications, and the format of logs."""
