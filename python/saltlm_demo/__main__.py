"""``python -m saltlm_demo``, which is what ``make demo`` runs."""

import sys

from .run import main

sys.exit(main())
