"""``python -m ptq_core`` is the command line ``ptq``."""

from __future__ import annotations

import sys

from ptq_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
