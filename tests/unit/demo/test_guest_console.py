"""Commands over a line, with a shell of this machine in the guest's place."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from vhostnet.demo.console import Console, GuestError


@pytest.fixture
def console() -> Iterator[Console]:
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        yield Console(shell.stdin.fileno(), shell.stdout.fileno(), lambda: "no idea")
        shell.kill()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("echo hello", (0, "hello\n")),
        ("printf 'no end of line'", (0, "no end of line")),
        ("exit 3", (3, "")),
        ('echo "it\'s"; false', (1, "it's\n")),
        ("echo one >&2; cat; echo two # and a comment", (0, "one\ntwo\n")),
    ],
)
def test_status_and_output(console: Console, command: str, expected: tuple[int, str]) -> None:
    assert console.run(command, 5.0) == expected


def test_a_syntax_error_does_not_end_the_shell(console: Console) -> None:
    assert console.run("if (", 5.0)[0] != 0
    assert console.run("echo still here", 5.0) == (0, "still here\n")


def test_much_output(console: Console) -> None:
    status, output = console.run("seq 20000", 10.0)
    assert (status, len(output.split())) == (0, 20000)


def test_silence_is_an_error_with_a_reason(console: Console) -> None:
    with pytest.raises(GuestError, match=r"silent for 0\.2 s: no idea"):
        console.run("sleep 1", 0.2)


def test_the_end_of_the_guest_is_an_error(console: Console) -> None:
    with pytest.raises(GuestError, match="QEMU ended: no idea"):
        console.run("kill $PPID; exec sleep 1", 5.0)
