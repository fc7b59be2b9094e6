"""`python -m aioserving`: the same as the command `aioserving`."""

from __future__ import annotations

import sys

from aioserving.cli import main

if __name__ == "__main__":
    sys.exit(main())
