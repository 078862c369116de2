"""Servers: limits, and handlers from their beginning to the end of the drain."""
