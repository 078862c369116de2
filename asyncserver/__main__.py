"""`python -m asyncserver`."""

import sys

from .cli import main

sys.exit(main())
