"""A program of one process, and the lifespan of each that serves."""
