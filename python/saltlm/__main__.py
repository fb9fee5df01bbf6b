"""``python -m saltlm``, and what the installed command runs."""

import sys


def start() -> int:
    """Run the command line; an interrupt in the moment before it can take care of itself ends as one later on."""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("saltlm: interrupted; nothing half-written was left behind\n")
        return 130


if __name__ == "__main__":
    sys.exit(start())
