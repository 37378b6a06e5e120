"""Coverage-guided fuzzing with atheris (libFuzzer), of the interpreted lane.

    python -m tests.fuzz {messages,split,packed} [--runs N] [--seed N] [--corpus DIR]

Without --runs it goes on until something is found or it is interrupted.  What breaks a rule is
written to crash-*; `python -m tests.fuzz TARGET --replay FILE` runs it once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"  # before anything imports numba
#: Longer inputs say nothing new: a ring has 8 descriptors and a table.
MAX_SIZE = {"messages": 2048, "split": 512, "packed": 512}


def main() -> None:
    parser = argparse.ArgumentParser("tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(MAX_SIZE))
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="inputs to begin with; new ones are added")
    parser.add_argument("--replay", type=Path, help="run this one input")
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["vhostnet"]):
        from fuzz import targets
    target = targets.TARGETS[options.target]()
    if options.replay:
        target(options.replay.read_bytes())
        return
    words = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={MAX_SIZE[options.target]}",
        "-timeout=20",
    ]
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="vhostnet-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for k, seed in enumerate(targets.SEEDS[options.target]()):
        (corpus / f"seed-{k:03}").write_bytes(seed)
    status = in_child(lambda: fuzz([*words, str(corpus)], target))
    if not options.corpus:
        shutil.rmtree(corpus)
    sys.exit(status)


def fuzz(words: list[str], target: Callable[[bytes], None]) -> None:
    """Ends the process."""
    import atheris

    atheris.Setup(words, target)
    atheris.Fuzz()


def in_child(function: Callable[[], None]) -> int:
    """Run what ends its process in one of its own; returns the exit status."""
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:  # the child has it too, and says how far it came
            continue


if __name__ == "__main__":
    main()
