"""`vhostnet check`: whether this host lets each front door work, and how to mend it."""

from __future__ import annotations

import argparse
import json

from vhostnet.cli.config_file import read_config
from vhostnet.cli.device_checks import device_findings
from vhostnet.cli.host_checks import DOORS, Finding, findings
from vhostnet.cli.parser import nearest
from vhostnet.errors import EXIT_HOST, EXIT_OK, ConfigError, UsageError

EPILOG = """\
examples:
  vhostnet check                 # everything
  vhostnet check run             # status 4 unless `vhostnet run` can work here
  vhostnet check /etc/vhostnet.toml    # the file of --config, and what its devices need
  podman run ... vhostnet check  # what a container's rules forbid

exit status:
  0  the doors that were named can work (none named: at least one can), the file is right
  3  the file is wrong   4  this host refuses
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet check`."""
    parser.description = (
        "Try what each front door needs of this host, one thing after the other, and say how to "
        "mend what does not work; or a configuration file, and what its devices need."
    )
    parser.epilog = EPILOG
    parser.add_argument(
        "subjects",
        metavar="DOOR|FILE",
        nargs="*",
        help=f"one of {', '.join(DOORS)} (default: all), or a file of `serve --config` "
        "(a word with a dot or a slash)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Check and print; returns the exit status."""
    files = [word for word in args.subjects if "/" in word or "." in word]
    doors = [word for word in args.subjects if word not in files]
    for door in doors:
        if door not in DOORS:
            raise UsageError(
                f"there is no front door {door!r}{nearest(door, DOORS)}; there are "
                f"{', '.join(DOORS)}, or name a file: ./{door}"
            )
    if files and doors:
        raise UsageError(f"check {doors[0]} and {files[0]} one after the other")
    if files:
        return _check_files(files, args.json)
    found = findings()
    works = {door: all(f.ok for f in found if door in f.doors) for door in DOORS}
    if args.json:
        print(json.dumps({"front-doors": works, "checks": _as_json(found)}, indent=2))
    else:
        _print(found, works)
    wanted = [works[door] for door in doors] or [any(works.values())]
    return EXIT_OK if all(wanted) else EXIT_HOST


def _check_files(paths: list[str], as_json: bool) -> int:
    problems: list[str] = []
    configs = []
    for path in paths:
        try:
            configs.append(read_config(path))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    found = [finding for config in configs for finding in device_findings(config)]
    works = all(f.ok for f in found if f.doors)
    if as_json:
        print(json.dumps({"files": paths, "ok": works, "checks": _as_json(found)}, indent=2))
    else:
        _print(found, {})
    return EXIT_OK if works else EXIT_HOST


def _as_json(found: list[Finding]) -> list[dict[str, object]]:
    return [
        {"check": f.what, "needed-by": list(f.doors), "ok": f.ok, "said": f.said} for f in found
    ]


def _print(found: list[Finding], works: dict[str, bool]) -> None:
    width = max(len(f.what) for f in found)
    for f in found:
        mark = "ok" if f.ok else "no" if f.doors else "--"
        print(f"{mark}  {f.what:{width}}  {f.said}")
    for door, ok in works.items():
        lacking = [f.what for f in found if door in f.doors and not f.ok]
        print(f"vhostnet {door}: {'works here' if ok else 'cannot work: ' + ', '.join(lacking)}")
