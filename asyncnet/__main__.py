"""``python -m asyncnet``."""

import sys

from asyncnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
