"""The command line: `python -m asyncserver`."""
