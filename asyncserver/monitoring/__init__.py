"""What others are told about servers: Prometheus, probes over HTTP, systemd, and the look of logs."""
