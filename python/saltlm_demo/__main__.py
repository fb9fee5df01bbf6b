"""Entry point of ``python -m saltlm_demo`` and ``make demo``."""

import sys

from .run import main

sys.exit(main())
