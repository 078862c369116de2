"""`python -m asyncserver`. PYTHON_ARGCOMPLETE_OK: shells may ask it what could be typed next."""

import sys

from .cli.main import main
from .leaving.threads import watch_end

_status = main()
watch_end(_status)
sys.exit(_status)
