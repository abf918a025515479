"""`innerloop` and `python -m innerloop`: the command line, which needs innerloop[lab]."""

import sys

from innerloop.errors import InnerloopError


def main() -> None:
    """Run the command line. Where its packages are missing, one line says what to install."""
    try:
        from innerloop.lab.cli import main as command_line
    except InnerloopError as error:
        print(f"innerloop: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    command_line()


if __name__ == "__main__":
    main()
