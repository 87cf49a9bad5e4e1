"""Command line: ``pyro-nas search``, ``compare``, ``rank``, ``complexity``, ``evidence``, a table of commands."""

from __future__ import annotations

import io
import os
import sys

import torch
from jsonargparse import auto_cli

from pyro_nas.inference import NonFiniteLoss
from pyro_nas.studies.compare.command import compare
from pyro_nas.studies.complexity.command import complexity
from pyro_nas.studies.evidence.command import evidence
from pyro_nas.studies.rank import rank
from pyro_nas.studies.search.command import search


def main(args: list[str] | None = None) -> int:
    """Run the command line; return 2 after an error of the user's.

    Numbers below 1e-38 count as 0: point weights that only the prior pulls at get there, and with them a CPU is several
    times slower. (Threads inherit the mode where they start, hence here.)
    """
    torch.set_flush_denormal(True)
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files: a window that cannot open must not end a run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # nor a character that the terminal lacks, "→" in cp1252
            stream.reconfigure(errors="replace")
    try:
        auto_cli(
            {"search": search, "compare": compare, "rank": rank, "complexity": complexity, "evidence": evidence},
            args=args,
            as_positional=False,
        )
    except (ValueError, TypeError, OSError, NonFiniteLoss) as error:
        print(f"pyro-nas: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
