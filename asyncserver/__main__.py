"""`python -m asyncserver`. PYTHON_ARGCOMPLETE_OK: shells may ask it what could be typed next."""

from .cli.main import program

program()
