"""``python -m dropblock_inject`` is the command ``dropblock-inject``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
