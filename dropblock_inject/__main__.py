"""``python -m dropblock_inject`` is the command ``dropblock-inject``."""

from .command.main import run

if __name__ == "__main__":
    run()
