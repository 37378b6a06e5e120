"""dnsmasq as what a machine without a disk boots from: DHCP and TFTP in a bed's namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from vhostnet.demo.tools import end, require, spawn

SCRIPT = "boot.ipxe"


class BootServer:
    """Hands out one address and a script for iPXE, with the files that it names.

    Args:
        folder: for files and log; made.
        address: what the client gets.
        script: lines for iPXE.
        files: name -> content.
        prefix: the namespace (`netns.Namespace.prefix`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str,
        script: Sequence[str],
        files: Mapping[str, bytes],
        prefix: Sequence[str],
    ) -> None:
        self._log = folder / "log"
        self._root = folder / "files"
        self._root.mkdir(parents=True)
        for name, content in files.items():
            (self._root / name).write_bytes(content)
        (self._root / SCRIPT).write_text("\n".join(["#!ipxe", *script, ""]))
        argv = [require("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
        argv += ["--interface=tap0", "--bind-interfaces", "--user=root", "--group=root"]
        argv += [f"--dhcp-range={address},{address}", f"--dhcp-leasefile={folder / 'leases'}"]
        argv += ["--no-ping", "--log-facility=-", "--pid-file="]
        argv += [f"--dhcp-boot={SCRIPT}", "--enable-tftp", f"--tftp-root={self._root}"]
        with self._log.open("wb") as log:
            self._process = spawn(argv, prefix=prefix, stdout=log, stderr=log)

    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace")

    def sent(self) -> list[str]:
        """The files that were fetched to their end."""
        return re.findall(rf"sent {re.escape(str(self._root))}/(\S+) to", self.log())

    def leased(self) -> list[str]:
        """The addresses that were given, an entry for each time."""
        return re.findall(r"DHCPACK\(\w+\) (\S+)", self.log())

    def __enter__(self) -> BootServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self._process)
