"""What servers say of themselves: counters, reports, durations, and the fields of log records."""
