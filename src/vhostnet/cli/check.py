"""`vhostnet check`: whether this host lets each front door work, and how to mend it."""

from __future__ import annotations

import argparse
import json

from vhostnet.cli.host_checks import DOORS, Finding, findings
from vhostnet.cli.parser import nearest
from vhostnet.errors import EXIT_HOST, EXIT_OK, UsageError

EPILOG = """\
examples:
  vhostnet check                 # everything
  vhostnet check run             # status 4 unless `vhostnet run` can work here
  podman run ... vhostnet check  # what a container's rules forbid

exit status:
  0  the doors that were named can work (none named: at least one can)   4  they cannot
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet check`."""
    parser.description = (
        "Try what each front door needs of this host, one thing after the other, and say how to "
        "mend what does not work."
    )
    parser.epilog = EPILOG
    parser.add_argument(
        "doors", metavar="DOOR", nargs="*", help=f"one of {', '.join(DOORS)} (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Check and print; returns the exit status."""
    for door in args.doors:
        if door not in DOORS:
            raise UsageError(
                f"there is no front door {door!r}{nearest(door, DOORS)}; there are "
                f"{', '.join(DOORS)}"
            )
    found = findings()
    works = {door: all(f.ok for f in found if door in f.doors) for door in DOORS}
    if args.json:
        checks = [
            {"check": f.what, "needed-by": list(f.doors), "ok": f.ok, "said": f.said} for f in found
        ]
        print(json.dumps({"front-doors": works, "checks": checks}, indent=2))
    else:
        _print(found, works)
    wanted = [works[door] for door in args.doors] or [any(works.values())]
    return EXIT_OK if all(wanted) else EXIT_HOST


def _print(found: list[Finding], works: dict[str, bool]) -> None:
    width = max(len(f.what) for f in found)
    for f in found:
        mark = "ok" if f.ok else "no" if f.doors else "--"
        print(f"{mark}  {f.what:{width}}  {f.said}")
    for door, ok in works.items():
        lacking = [f.what for f in found if door in f.doors and not f.ok]
        print(f"vhostnet {door}: {'works here' if ok else 'cannot work: ' + ', '.join(lacking)}")
