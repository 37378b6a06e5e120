"""Fuzzing: by coverage in the interpreter, by volume in compiled code.  See README.md."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1])
if _TESTS not in sys.path:  # `python -m tests.fuzz`; pytest has it there
    sys.path.append(_TESTS)
