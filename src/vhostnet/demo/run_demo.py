"""The demo: a real guest on vhostnet, beside the same guest on QEMU's own virtio card.

One guest has both cards, each on a TAP of its own, so both are measured in the same boot and
in turns: whatever else this machine does meanwhile meets both alike.  Everything lives in a
network namespace that vanishes with us.
"""

from __future__ import annotations

import json
import platform
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vhostnet import __version__
from vhostnet.demo import measure
from vhostnet.demo.accel import accelerator
from vhostnet.demo.daemon import Daemon
from vhostnet.demo.guest_image import GuestImage, guest_image
from vhostnet.demo.machine import Machine, Nic, TapNic, VhostUserNic, qemu_version
from vhostnet.demo.netns import Namespace
from vhostnet.demo.progress import Progress
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.report import Report
from vhostnet.errors import HostError, UsageError

# Addresses kept for documentation (RFC 5737): nothing real can be meant by them.
_OURS = ("192.0.2.1", "192.0.2.2")
_QEMUS = ("198.51.100.1", "198.51.100.2")
_OUR_MAC = "52:54:00:12:34:01"
#: Door to the command that opens it.
_COMMANDS = {"vhost-user": "serve", "run": "run"}


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        quick: shorter runs, one of each.
        shell: the guest's console instead of the measurements.
        json_file: where the numbers go, besides the table.
        door: "vhost-user", or "run": QEMU's own `tap,vhost=on`, in `vhostnet run`.
        accel: "kvm" or "tcg" to insist, "auto" to find out.
    """

    quick: bool = False
    shell: bool = False
    json_file: Path | None = None
    accel: str = "auto"
    door: str = "vhost-user"

    @property
    def runs(self) -> int:
        """How often each card is measured."""
        return 1 if self.quick else 3

    @property
    def seconds(self) -> float:
        """How long each run takes."""
        return 2.0 if self.quick else 5.0

    @property
    def pings(self) -> int:
        """How many echo requests are sent."""
        return 20 if self.quick else 50


def prepare() -> None:
    """Do beforehand what is done once: the guest image, the question whether KVM works."""
    progress = Progress({})
    accelerator(guest_image(progress.say), progress.say)


def run_demo(options: DemoOptions) -> int:
    """Run the demo; returns the exit status: 0 if the guest was reached without loss.

    Raises:
        UsageError: the options do not fit what is there.
        HostError: this machine cannot do it, or the guest did not work; the message says why.
    """
    if options.shell and not sys.stdin.isatty():
        raise UsageError("--shell gives the guest's console to a terminal; there is none here")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    """Leave on SIGTERM as on Ctrl-C: through all the clean-up."""
    raise KeyboardInterrupt


def _run(options: DemoOptions, stack: ExitStack) -> int:
    progress = Progress(_plan(options))
    with progress.step("guest image"):
        image = guest_image(progress.say)
        accel = options.accel
        if accel == "auto":
            accel = accelerator(image, progress.say)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhostnet-demo-")))
    log = folder / "vhostnet.log"
    daemon: Daemon | None = None
    with progress.step(f"vhostnet {_COMMANDS[options.door]}"):
        host = stack.enter_context(Namespace())
        host.add_tap("vhostnet0", f"{_OURS[0]}/24")
        host.add_tap("qemu0", f"{_QEMUS[0]}/24")
        prefix = host.prefix
        if options.door == "run":
            card: Nic = TapNic("vhostnet0", mac=_OUR_MAC, vhost=True)
            prefix = [*prefix, *run_prefix(log)]
        else:
            card = VhostUserNic(folder / "socket")
            arguments = ["--socket-path", str(folder / "socket"), "--backend", "tap:vhostnet0"]
            daemon = stack.enter_context(Daemon(arguments, log=log, prefix=host.prefix))
    with progress.step("guest", f"booting ({accel})"):
        # vhostnet run needs nothing of QEMU: the guest's memory is as it is by default
        machine = Machine(accel, private=options.door == "run")
        guest = stack.enter_context(GuestVM(image, machine, [card, TapNic("qemu0")], prefix=prefix))
        guest.wait_for_shell()
        guest.add_address(0, f"{_OURS[1]}/24")
        guest.add_address(1, f"{_QEMUS[1]}/24")
    if options.shell:
        return _shell(guest)
    if options.door == "run":
        check_vhost(guest, log)
    try:
        report = _measure(options, progress, guest, host, _versions(image), accel)
    except HostError as err:
        if daemon is None or daemon.running():
            raise
        raise HostError(f"vhostnet serve ended: {daemon.last_words()}") from err
    print(report.as_table())
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if report.ping.lost == 0 else 1


def run_prefix(log: Path, *options: str) -> list[str]:
    """What comes before a command so that its /dev/vhost-net is ours."""
    words = [sys.executable, "-m", "vhostnet", "run", "--log-level", "info", "--log-file", str(log)]
    return [*words, *options, "--"]


def check_vhost(guest: GuestVM, log: Path) -> None:
    """Whether the guest's card is ours: QEMU goes on with its own one when vhost fails.

    Raises HostError.
    """
    said = guest.qemu_log()
    if "falling back on userspace virtio" in said:
        raise HostError(f"QEMU could not start vhost: {said.strip()}")
    if "starts" not in log.read_text(errors="replace"):
        raise HostError("QEMU never started a ring of /dev/vhost-net")


def _measure(
    options: DemoOptions,
    progress: Progress,
    guest: GuestVM,
    host: Namespace,
    versions: dict[str, str],
    accel: str,
) -> Report:
    ours = measure.Path(guest, host, guest_address=_OURS[1], host_address=_OURS[0])
    qemus = measure.Path(guest, host, guest_address=_QEMUS[1], host_address=_QEMUS[0])
    with progress.step("ping"):
        pinged = measure.ping(ours, options.pings)
    progress.say(f"{pinged.sent} pings sent, {pinged.lost} lost")
    if pinged.lost == pinged.sent:
        raise HostError("the guest does not reach the host over vhostnet")
    report = Report(pinged, accel, versions, options.seconds)
    measure.start_iperf3(guest)
    with progress.step("warming up", "both cards"):
        # An emulated processor translates code when it first runs: that is nobody's card.
        for path in (ours, qemus):
            for direction in measure.DIRECTIONS:
                measure.tcp(path, direction, 1.0)
    for run in range(1, options.runs + 1):
        for card, path in (("vhostnet", ours), ("qemu", qemus)):
            with progress.step(_run_name(run, card), "both ways"):
                for direction in measure.DIRECTIONS:
                    report.add(card, direction, measure.tcp(path, direction, options.seconds))
    return report


def _shell(guest: GuestVM) -> int:
    print(f"eth0 is vhostnet's ({_OURS[1]}, the host is {_OURS[0]});")
    print(f"eth1 is QEMU's own ({_QEMUS[1]}, the host is {_QEMUS[0]}).")
    print("Leave with exit or Ctrl-].")
    guest.interact()
    return 0


def _plan(options: DemoOptions) -> dict[str, float]:
    """Name all steps with the seconds each takes on a small machine."""
    plan = {"guest image": 1.0, f"vhostnet {_COMMANDS[options.door]}": 3.0, "guest": 4.0}
    if not options.shell:
        plan["ping"] = 0.1 * options.pings + 1
        plan["warming up"] = 6.0
        for run in range(1, options.runs + 1):
            for card in ("vhostnet", "qemu"):
                plan[_run_name(run, card)] = 2 * (options.seconds + 0.5)
    return plan


def _run_name(run: int, card: str) -> str:
    return f"TCP over {'vhostnet' if card == 'vhostnet' else 'QEMU alone'}, run {run},"


def _versions(image: GuestImage) -> dict[str, str]:
    return {
        "vhostnet": __version__,
        "QEMU": ".".join(map(str, qemu_version())),
        "guest": image.kernel.release,
        "host": platform.release(),
        "Python": platform.python_version(),
    }
