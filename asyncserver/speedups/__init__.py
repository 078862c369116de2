"""The hot paths in C, where they can be had. All of them are Python elsewhere, and do the same."""
