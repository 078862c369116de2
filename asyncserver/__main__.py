"""`python -m asyncserver`. PYTHON_ARGCOMPLETE_OK: shells may ask it what could be typed next."""

import sys

from .cli.main import main
from .leaving.threads import watch_end

watch_end(status := main())
sys.exit(status)
