"""What tests need of the host, as marks that skip with what `vhostnet check` would say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vhostnet.cli import host_checks
from vhostnet.errors import HostError


def _needs(*checks: Callable[[], str]) -> pytest.MarkDecorator:
    try:
        for check in checks:
            check()
    except HostError as error:
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(False, reason="it is all there")


#: Descriptors of another process, as the character device of both doors is given them.
TAKES_DESCRIPTORS = _needs(host_checks._descriptors)
#: `vhostnet run`.
RUNS_TREES = _needs(host_checks._listener, host_checks._descriptors, host_checks._foreign_memory)
