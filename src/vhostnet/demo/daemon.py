"""`vhostnet serve` as a child process, started exactly as a user would."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vhostnet.demo.tools import end, spawn
from vhostnet.errors import HostError

# With cold caches every kernel is compiled before the daemon is ready.
READY_S = 600.0


class Daemon:
    """One running `vhostnet serve`, ready to be connected to.

    Args:
        arguments: those of `vhostnet serve`, without --ready-fd.
        log: takes what it prints.
        prefix: where it runs (`netns.Namespace.prefix`).

    Raises:
        HostError: it ended before it was ready, or was not ready in time; the message has the
            last line of its log.
    """

    def __init__(self, arguments: Sequence[str], *, log: Path, prefix: Sequence[str] = ()) -> None:
        self.log = log
        ready, told = os.pipe()
        try:
            argv = [sys.executable, "-m", "vhostnet", "serve", *arguments]
            with log.open("ab") as file:
                self.process = spawn(
                    [*argv, "--ready-fd", str(told)],
                    prefix=prefix,
                    stdout=file,
                    stderr=file,
                    pass_fds=[told],
                )
            os.close(told)
            told = -1  # now only the daemon holds it: end of file means it has gone
            self._wait(ready)
        finally:
            os.close(ready)
            if told >= 0:
                os.close(told)

    def _wait(self, ready: int) -> None:
        deadline = time.monotonic() + READY_S
        said = b""
        try:
            while b"READY=1\n" not in said:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([ready], [], [], left)[0]:
                    raise HostError(f"vhostnet serve: not ready after {READY_S:g} s")
                chunk = os.read(ready, 4096)
                if not chunk:
                    raise HostError(f"vhostnet serve ended at once: {self.last_words()}")
                said += chunk
        except BaseException:
            end(self.process)
            raise

    def last_words(self) -> str:
        """Return its exit status and the last line of its log, for messages about its end."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"status {self.process.wait()}, last words: {lines[-1] if lines else 'none'}"

    def running(self) -> bool:
        """Tell whether it still runs."""
        return self.process.poll() is None

    def stop(self) -> int:
        """End it with SIGTERM (SIGKILL if it does not listen); returns its exit status."""
        return end(self.process, grace=5.0)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
