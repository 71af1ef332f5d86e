"""The entry point of `mtkit` and `python -m mtkit`."""

import os
import sys


def main() -> None:
    """Run the command line; even a Ctrl-C during the import of its modules is reported in one line."""
    try:
        from mtkit.cli import main
    except KeyboardInterrupt:
        os.write(2, b"mtkit: error: stopped by SIGINT before it began\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
