"""`vhostnet warm`: compile the data path now, so that no daemon has to."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet warm`."""
    parser.description = (
        "Compile every kernel of the data path into the cache ($CACHE_DIRECTORY, "
        "$XDG_CACHE_HOME or ~/.cache).  Daemons of the same user then start within a second."
    )
    parser.epilog = "examples:\n  vhostnet warm\n  vhostnet warm --list"
    parser.add_argument(
        "--list", action="store_true", help="list the kernels instead, name and signature"
    )


def main(args: argparse.Namespace) -> int:
    """Compile or list; returns the exit status."""
    from vhostnet.datapath import catalogue

    if args.list:
        for spec in catalogue.list_kernels():
            print(f"{spec.name}  {spec.signature_text}")
        return 0

    def progress(name: str, seconds: float | None) -> None:
        if seconds is None:
            print(f"{name} ...", end="", flush=True)
        else:
            print(f" {seconds:.1f} s")

    report = catalogue.warm(None, progress)
    print(f"{report.compiled} compiled, {report.loaded} loaded, {report.seconds:.1f} s")
    return 0
