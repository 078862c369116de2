"""How a program ends: after a drain, and whatever its threads do."""
