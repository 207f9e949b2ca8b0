"""``python -m bitseg`` is the command ``bitseg``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="bitseg")
