"""`python -m xentrs.cli`: the same as `xentrs`."""

import sys

from xentrs.cli import main

sys.exit(main())
