"""Workers: several processes on one port, and the supervisor that starts, counts and ends them."""
