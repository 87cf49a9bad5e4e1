"""Command line: ``pyro-nas search`` and ``pyro-nas complexity``."""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from pyro_nas.commands.complexity import complexity
from pyro_nas.commands.search import search
from pyro_nas.inference import NonFiniteLoss


def main(args: list[str] | None = None) -> int:
    """Run the command line; return 2 after an error of the user's."""
    try:
        auto_cli({"search": search, "complexity": complexity}, args=args, as_positional=False)
    except (ValueError, TypeError, OSError, NonFiniteLoss) as error:
        print(f"pyro-nas: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
