"""``python -m mobilefit``."""

import sys

from mobilefit.cli import main

sys.exit(main())
