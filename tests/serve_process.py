"""One `vhostnet serve` as a child process, and what /proc says about it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# A cold cache: every kernel is compiled first.
READY_S = 600.0

# How long anything that the daemon does for a peer may take before a test gives up.
PATIENCE_S = 60.0

PROGRAM = ("-m", "vhostnet")
# The same program without its limits of log lines, for tests that read every line.
TALKATIVE = (
    "-c",
    "from vhostnet.cli import logs; from vhostnet.frontdoors import peer_log; "
    "logs.BURST = peer_log.BURST = 1 << 30; "
    "from vhostnet.cli.main import main; raise SystemExit(main())",
)


def wait_until(done: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Ask until the answer is yes; an AssertionError that says `what` if it stays no."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)


class ServeProcess:
    """A daemon that listens on `folder`/socket, from ready until `stop`.

    Args:
        folder: for socket and log.
        options: of `vhostnet serve`, without --ready-fd, and without --socket-path unless there
            is --device or --config.
        program: what Python runs, `PROGRAM` or `TALKATIVE`.
        prefix: words before the command, such as those that enter a namespace.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        program: Sequence[str] = PROGRAM,
        prefix: Sequence[str] = (),
    ) -> None:
        self.socket = str(folder / "socket")
        self._log = folder / "vhostnet.log"
        self._marked = 0
        has_socket = {"--device", "--config"} & set(options)
        where = () if has_socket else ("--socket-path", self.socket)
        ready, told = os.pipe()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, *program, "serve", *where, *options),
                    *("--ready-fd", str(told)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[told],
                start_new_session=True,
            )
        os.close(told)
        try:
            said = self._read_to_end(ready)
            assert said == b"READY=1\n", f"vhostnet serve is not ready: {self.log()[-800:]}"
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(ready)
        self._idle_fds = self.fds()

    @staticmethod
    def _read_to_end(fd: int) -> bytes:
        """What the daemon writes until it closes its end, or what came within READY_S."""
        deadline = time.monotonic() + READY_S
        said = b""
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(fd, 64)
            if not chunk:
                break
            said += chunk
        return said

    # --- log ----------------------------------------------------------------------------------

    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(errors="replace")

    def mark(self) -> None:
        """Let `lines` begin here."""
        self._marked = self._log.stat().st_size

    def lines(self) -> list[str]:
        """What it said since `mark`, without comings and goings of front-ends."""
        with self._log.open("rb") as log:
            log.seek(self._marked)
            text = log.read().decode(errors="replace")
        return [
            line.removeprefix("vhostnet: ")
            for line in text.splitlines()
            if not re.search(r"front-end pid \d+ (dis)?connected$", line)
        ]

    # --- what it holds ------------------------------------------------------------------------

    def is_running(self) -> bool:
        return self.process.poll() is None

    def fds(self) -> list[str]:
        """What its descriptors are, sorted."""
        folder = f"/proc/{self.process.pid}/fd"
        found = []
        for fd in os.listdir(folder):
            try:
                found.append(re.sub(r"\d+", "N", os.readlink(f"{folder}/{fd}")))
            except FileNotFoundError:
                continue  # closed meanwhile
        return sorted(found)

    def wait_idle(self) -> None:
        """Wait until it holds the descriptors that it held when it was ready, and no other."""
        n = len(self._idle_fds)
        wait_until(lambda: len(self.fds()) == n, "as few descriptors as before")
        assert self.fds() == self._idle_fds

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def maps(self) -> list[str]:
        """Its mappings, one line each."""
        return Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1])

    # --- the end ------------------------------------------------------------------------------

    def stop(self) -> int:
        """End it as an operator would; returns its exit status."""
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("vhostnet serve does not end") from None

    def kill(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.wait()

    def check_and_stop(self) -> None:
        """End it, and see that it ran until now without a bug to report."""
        ran = self.is_running()
        status = self.stop()
        log = self.log()
        assert ran, f"the daemon died with status {status}: {log[-800:]}"
        assert status == 0, log[-800:]
        assert "Traceback" not in log, log[log.index("Traceback") - 200 :][:2000]
        assert "bug in this program" not in log
