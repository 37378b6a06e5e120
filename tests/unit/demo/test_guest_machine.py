"""The command lines QEMU gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhostnet.demo import machine
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.guest_kernel import GuestKernel
from vhostnet.demo.machine import Machine, Nic, TapNic, VhostUserNic, command_line

IMAGE = GuestImage(GuestKernel("6.1", Path("/k/vmlinuz"), Path("/k/modules")), Path("/k/initrd"))


@pytest.fixture(autouse=True)
def no_qemu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "require", lambda tool: tool)
    monkeypatch.setattr(machine, "qemu_version", lambda: (7, 2))


def _line(nic: Nic, made_of: Machine | None = None) -> str:
    return " ".join(command_line(IMAGE, made_of or Machine(), (nic,)))


def test_memory_is_shared_with_the_back_end() -> None:
    line = _line(VhostUserNic(Path("/s")), Machine(memory_mib=64))
    assert "memory-backend-memfd,id=mem,size=64M,share=on" in line
    assert "maxmem" not in line


def test_room_for_memory_that_is_plugged_in_later() -> None:
    assert "-m 64,slots=2,maxmem=256M" in _line(TapNic("t"), Machine("tcg", 64, 256))


@pytest.mark.parametrize(
    ("accel", "version", "workaround"),
    [("tcg", (7, 2), True), ("tcg", (10, 0), False), ("kvm", (7, 2), False)],
)
def test_no_msix_where_qemu_would_crash(
    monkeypatch: pytest.MonkeyPatch, accel: str, version: tuple[int, int], workaround: bool
) -> None:
    monkeypatch.setattr(machine, "qemu_version", lambda: version)
    for nic in (VhostUserNic(Path("/s")), TapNic("t")):
        assert (",vectors=0" in _line(nic, Machine(accel))) is workaround


def test_several_queue_pairs_and_properties() -> None:
    line = _line(VhostUserNic(Path("/s"), queue_pairs=2, properties={"packed": "on"}))
    assert "vhost-user,id=net0,chardev=char0,queues=2" in line
    assert ",mq=on" in line
    assert line.endswith(",packed=on")


def test_who_listens_on_the_socket() -> None:
    assert "path=/s,server=on,wait=on" in _line(VhostUserNic(Path("/s"), server=True))
    assert "path=/s,reconnect=1" in _line(VhostUserNic(Path("/s"), reconnect_s=1))
    assert "path=/s -netdev" in _line(VhostUserNic(Path("/s")))


def test_the_peer_does_without_any_vhost() -> None:
    assert "tap,id=net0,ifname=t,script=no,downscript=no,vhost=off" in _line(TapNic("t"))


def test_only_a_network_boot_has_a_boot_rom_and_no_kernel() -> None:
    usual = _line(TapNic("t"))
    assert "-kernel /k/vmlinuz -initrd /k/initrd -append " in usual
    assert ",romfile=" in usual
    netboot = _line(TapNic("t"), Machine(netboot=True))
    assert "-kernel" not in netboot
    assert ",bootindex=0" in netboot
    assert "romfile" not in netboot


def test_a_card_on_a_tap_may_have_the_hosts_data_path() -> None:
    assert "downscript=no,vhost=on,vhostforce=on -device" in _line(TapNic("t", vhost=True))


def test_memory_is_shared_unless_it_is_to_be_private() -> None:
    assert "share=on" in _line(TapNic("t"))
    private = _line(TapNic("t"), Machine(private=True))
    assert "memory-backend" not in private
    assert "-machine q35 -m 256 " in private


def test_the_hosts_files_are_shared_for_reading_only() -> None:
    assert "virtfs" not in _line(TapNic("t"))
    assert "-virtfs local,path=/," in _line(TapNic("t"), Machine(shares_root=True))
    assert ",readonly=on," in _line(TapNic("t"), Machine(shares_root=True))
