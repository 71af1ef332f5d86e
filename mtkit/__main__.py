"""The entry point of `mtkit` and `python -m mtkit`."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while its modules are imported is reported in one line, too."""
    try:
        from mtkit.cli import main
    except KeyboardInterrupt:
        os.write(2, b"mtkit: error: stopped by SIGINT before it began\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
