"""DPDK's testpmd as a child process, driven by its own command line.

It plays the guest (a virtio_user port on a back-end's socket) or the device (a net_vhost port
that serves one).  Main and forwarding thread share one core; the main thread sleeps in
read(2) unless it is asked something.

Not here: what is measured with it.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType

from vhostnet.demo.tools import end, require, spawn
from vhostnet.errors import HostError

PROGRAM = "dpdk-testpmd"
START_S = 60.0
_numbers = count()


@dataclass(frozen=True)
class Stats:
    """A port's counters.

    Attributes:
        received, sent: packets since the port was started.
        rx_pps, tx_pps: packets a second since the last time the counters were asked for, by
            testpmd's own clock.
    """

    received: int
    sent: int
    rx_pps: float
    tx_pps: float


class Testpmd:
    """One testpmd, from start to quit; a context manager that kills it.

    Args:
        vdevs: its ports, such as "net_vhost0,iface=/s,queues=1"; the first is port 0.
        cpu: the core of all its threads.
        forward_cpu: another core for the thread that forwards.
        memory_mib: of plain pages, or of 2 MiB pages with `hugepages`.
        queue_size, queue_pairs: of each port.
        mbufs: packet buffers.
        options: more of testpmd's own, such as "--txpkts=64".
        prefix: where it runs (`netns.Namespace.prefix`).
    """

    __test__ = False  # pytest would take the name for a test's

    def __init__(
        self,
        vdevs: Sequence[str],
        *,
        cpu: int,
        forward_cpu: int | None = None,
        memory_mib: int = 256,
        hugepages: bool = False,
        queue_size: int = 256,
        queue_pairs: int = 1,
        mbufs: int = 8192,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        forward_cpu = cpu if forward_cpu is None else forward_cpu
        self.argv = [require(PROGRAM), "--lcores", f"0@{cpu},1@{forward_cpu}"]
        self.argv += ["--no-pci", "--no-telemetry", "--no-shconf", "-m", str(memory_mib)]
        self.argv += ["--in-memory", "--single-file-segments"] if hugepages else ["--no-huge"]
        self.argv.append(f"--file-prefix=vhostnet{os.getpid()}-{next(_numbers)}")
        for vdev in vdevs:
            self.argv += ["--vdev", vdev]
        self.argv += ["--", "--interactive", "--no-mlockall", f"--total-num-mbufs={mbufs}"]
        self.argv += ["--no-flush-rx", "--nb-cores=1"]
        self.argv += [f"--rxq={queue_pairs}", f"--txq={queue_pairs}"]
        self.argv += [f"--rxd={queue_size}", f"--txd={queue_size}", *options]
        self._said = ""
        # stdbuf: it would keep what it says for itself, as nobody looks at a terminal.
        self.process = spawn(
            [require("stdbuf"), "-oL", *self.argv],
            prefix=prefix,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_ready(self) -> None:
        """Wait until its ports are up."""
        self.ask("show config fwd", "packet forwarding")

    def tell(self, command: str) -> None:
        """Give a command and do not wait."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise HostError(f"testpmd ended: {self._said[-800:]}") from None

    def ask(self, command: str, last: str) -> str:
        """Give a command and return what it says up to the words *last*.

        Raises:
            HostError: it does not say them, or ended; the message has its last words.
        """
        self.tell(command)
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + START_S
        while last not in self._said:
            left = deadline - time.monotonic()
            if left <= 0:
                raise HostError(f"testpmd does not say {last!r}: {self._said[-800:]}")
            if select.select([fd], [], [], left)[0]:
                chunk = os.read(fd, 65536)
                if not chunk:
                    raise HostError(f"testpmd ended: {self._said[-800:]}")
                self._said += chunk.decode(errors="replace")
        answer, _, self._said = self._said.partition(last)
        return answer

    def start(self, mode: str, *, first: int = 0) -> None:
        """Begin to forward: "txonly", "rxonly", "io", ...

        Args:
            first: bursts that each port sends before, for a mode that only passes on.
        """
        self.ask(f"set fwd {mode}", f"Set {mode} packet forwarding mode")
        self.tell(f"start tx_first {first}" if first else "start")

    def stop(self) -> None:
        """End forwarding; what it says about it is thrown away."""
        self.ask("stop", "Done.")

    def forward(self, mode: str, seconds: float) -> None:
        """Let it move packets for some time."""
        self.start(mode)
        time.sleep(seconds)
        self.stop()

    def stats(self, port: int = 0) -> Stats:
        """Return a port's counters."""
        text = self.ask(f"show port stats {port}", "Tx-bps:")
        found = []
        for name in ("RX-packets", "TX-packets", "Rx-pps", "Tx-pps"):
            match = re.search(rf"{name}:\s+(\d+)", text)
            if match is None:
                raise HostError(f"testpmd's counters have no {name}: {text[-300:]}")
            found.append(int(match[1]))
        return Stats(*found)

    def quit(self) -> None:
        """End it in an orderly way."""
        self.tell("quit")
        try:
            self.process.communicate(timeout=START_S)
        except subprocess.TimeoutExpired:
            raise HostError("testpmd does not end") from None
        if self.process.returncode != 0:
            raise HostError(f"testpmd ended with status {self.process.returncode}")

    def kill(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        end(self.process)

    def __enter__(self) -> Testpmd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
