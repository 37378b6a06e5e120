"""The file of `vhostnet serve --config`: the same options, and all that is wrong in one pass."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pytest

from vhostnet.cli import serve
from vhostnet.cli.config_file import MAX_SIZE, parse_config, read_config
from vhostnet.cli.device_options import devices_of
from vhostnet.cli.main import main
from vhostnet.cli.options import DEVICE_OPTIONS
from vhostnet.cli.parser import Parser
from vhostnet.errors import ConfigError

CPU = min(os.sched_getaffinity(0))

GOOD = """\
socket-mode = "660"
one-off = true
log-format = "json"

[device.vm1]
socket = "/run/vm1.sock"
backend = "tap:tap1"
queue-pairs = 2
client = true
fill-checksums = true
coalesce = false
busy-poll-us = 50
busy-poll-adaptive = true
iommu = true
linux-abi = "6.12"
worker-cpus = "CPU"
worker-scheduling = "batch:3"

[device."vm.2"]
socket = "/run/a,b"
backend = "gen:size=64"
""".replace("CPU", str(CPU))

WRONG = """\
log-levl = "info"
socket-mode = 660
queue-pairs = 1

[device.vm1]
backend = "tapp:tap0"
queue-pairs = "2"
busy-poll-adaptive = true
name = "x"
[device.vm2]
socket = "/run/b"
[device.vm3]
socket = "/run/c"
backend = "null"
log-level = "info"
iommu = "on"
[device."a b"]
backend= "null"
fd = 3
coalesce = [
  true,
]
[device.vm5]
backend = "tap:x"
socket = "/run/c"
[device.vm6]
backend = "tap:x"
[device]
vm7 = 3
"""

SAID = """\
f:1: log-levl: there is no such key (did you mean log-level?)
f:2: socket-mode: 660 must be text in quotes, such as "660"
f:3: queue-pairs: belongs elsewhere, in a [device.NAME]
f:6: [device.vm1] backend: unknown backend 'tapp:tap0'; there are tap:NAME, tap-fd:N[+N...], \
null[:checksum], loop, gen:size=N, port:NAME (did you mean tap?)
f:7: [device.vm1] queue-pairs: "2" is not a number from 1 to 127 (without quotes)
f:8: [device.vm1] busy-poll-adaptive: needs busy-poll-us, the most it may reach
f:9: [device.vm1] name: the name is in the header, [device.NAME]
f:10: [device.vm2] backend is needed
f:15: [device.vm3] log-level: belongs elsewhere, before the first [device.NAME]
f:16: [device.vm3] iommu: "on" must be true or false (without quotes)
f:17: [device.a b] 'a b' is not a name of 1 to 32 letters, digits, '_', '.' and '-'
f:19: [device.a b] fd: is for the command line only
f:20: [device.a b] coalesce: a list must be true or false
f:25: [device.vm5] socket: two devices have the socket /run/c
f:27: [device.vm6] backend: two devices have tap:x
f:29: [device.vm7] must be a table, not 3
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config("f", text)
    return list(caught.value.problems)


def serve_arguments(*words: str) -> argparse.Namespace:
    parser = Parser(prog="vhostnet serve")
    serve.add_arguments(parser)
    return parser.parse(words)


def test_all_errors_of_a_file_are_said_in_one_pass_in_the_order_of_its_lines():
    assert problems(WRONG) == SAID.splitlines()


def test_each_error_is_a_line_on_stderr_and_the_status_is_3(tmp_path, capsys):
    path = tmp_path / "f"
    path.write_text(WRONG)
    for words in (["serve", "--config", str(path)], ["check", str(path)]):
        assert main(words) == 3
        out, err = capsys.readouterr()
        assert out == ""
        said = [f"vhostnet: {tmp_path}/{line}" for line in SAID.splitlines()]
        assert err.splitlines() == said


def test_a_file_says_what_the_command_line_says():
    config = parse_config("f", GOOD)
    assert dict(config.settings) == {"socket-mode": 0o660, "one-off": True, "log-format": "json"}
    words = (
        "name=vm1,socket=/run/vm1.sock,backend=tap:tap1,queue-pairs=2,client=on,fill-checksums=on,"
        "coalesce=off,busy-poll-us=50,busy-poll-adaptive=on,iommu=on,linux-abi=6.12,"
        f"worker-cpus={CPU},worker-scheduling=batch:3"
    )
    same = devices_of(
        serve_arguments(
            "--device", words, "--device", "name=vm.2,socket=/run/a,,b,backend=gen:size=64"
        )
    )
    assert [dataclasses.replace(d, option="") for d in config.devices] == [
        dataclasses.replace(d, option="") for d in same
    ]
    assert [d.option for d in config.devices] == ["f:5: [device.vm1]", "f:19: [device.vm.2]"]


def test_every_key_of_a_device_can_be_in_a_file():
    table = GOOD.partition("[device.vm1]")[2].partition("[")[0]
    for option in DEVICE_OPTIONS:
        assert (f"\n{option.key} = " in table) == option.in_file, option.key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f:1: there is no [device.NAME], so nothing to serve"),
        ("one-off = true\n", "f:1: there is no [device.NAME], so nothing to serve"),
        ("[[device]]\nbackend = 'null'\n", "f:1: write a table for each device, [device.NAME]"),
        ("\n\nx = \n", "f:3: is not TOML, column 5: Invalid value"),
        ("[device.a]\n[device.a]\n", "f:2: is not TOML, column 10: "),
        ("a = '''\n\n", "f:3: is not TOML: "),
        (
            "devices.a.backend = 'null'\n[device.b]\nbackend='null'",
            "f:1: devices: there is no",
        ),
        (
            "[device.a]\nbackend='port:'",
            "f:2: [device.a] backend: backend 'port:': port:NAME",
        ),
        (
            "".join(f"[device.{name}]\nbackend='port:x'\n" for name in "abc"),
            "f:6: [device.c] backend: port:x joins two devices, a and b already",
        ),
        ("[device]\na.backend='nul'", "f:2: [device.a] backend: unknown backend 'nul'"),
        ("device = {a = {backend = 'nul'}}", "f:1: [device.a] backend: unknown backend 'nul'"),
        ("x = " + "[" * 5000, "f: is nested too deeply"),
        (
            "[device.a]\nbackend='null'\nsocket='" + "x" * 108 + "'",
            "f:3: [device.a] socket: ",
        ),
        ('[device.a]\nbackend="null\\nb"\n', 'f:2: [device.a] backend: "null\\nb" must be one'),
        (
            "[device.a]\nbackend='null'\nqueue-pairs=true",
            "f:3: [device.a] queue-pairs: true is not",
        ),
        (
            "[device.a]\nbackend='null'\nqueue-pairs=1.0",
            "f:3: [device.a] queue-pairs: 1.0 is not",
        ),
        ("[device.a]\nbackend=07:32:00\n", 'f:2: [device.a] backend: "07:32:00" must be text'),
    ],
)
def test_a_wrong_file_is_told_with_its_line(text, said):
    [problem] = problems(text)
    assert problem.startswith(said)


def test_no_error_follows_from_another():
    text = """\
[device.a]
backend = "port:x"
queue-pairs = "2"
[device.b]
backend = "port:x"
queue-pairs = 2
[device.c]
backend = "port:y"
[device.d]
backend = "prot:y"
"""
    assert [problem.split(" ")[0] for problem in problems(text)] == ["f:3:", "f:10:"]


def test_a_file_that_cannot_be_read_is_a_wrong_configuration(tmp_path, capsys):
    (tmp_path / "binary").write_bytes(b"a = 1\n\xff\xfe")
    (tmp_path / "long").write_bytes(b"#" * (MAX_SIZE + 1))
    for name, said in (
        ("none", "/none: No such file or directory"),
        (".", ": Is a directory"),
        ("binary", "/binary:2: is not UTF-8"),
        ("long", "/long: longer than 1048576 bytes"),
    ):
        assert main(["serve", "--config", f"{tmp_path}/{name}"]) == 3
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_a_file_excludes_the_options_of_one_device_and_gives_way_to_those_of_the_daemon(tmp_path):
    path = tmp_path / "f"
    path.write_text('log-level = "debug"\nlog-format = "json"\n[device.a]\n'
                    'backend = "null"\nsocket = "s"\n')  # fmt: skip
    settings, devices = serve._understand(
        serve_arguments("--config", str(path), "--log-level", "error"), ()
    )
    assert (settings["log-level"], settings["log-format"]) == ({"": "error"}, "json")
    assert [device.name for device in devices] == ["a"]
    for words in (["--backend", "null"], ["--fd", "3"], ["--device", "socket=s,backend=null"]):
        assert main(["serve", "--config", str(path), *words]) == 2


def test_the_errors_of_several_files_are_said_together(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).write_text(f"{name} = 1\n[device.x]\nbackend = 'null'\n")
    assert main(["check", f"{tmp_path}/a", f"{tmp_path}/b"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": there is")[0] for line in lines] == [
        f"vhostnet: {tmp_path}/a:1: a",
        f"vhostnet: {tmp_path}/b:1: b",
    ]


def test_check_says_what_the_devices_of_a_file_need_of_the_host(tmp_path: Path, capsys):
    (tmp_path / "f.toml").write_text(
        f'[device.a]\nsocket = "{tmp_path}/a"\nbackend = "null"\n'
        f'[device.b]\nsocket = "{tmp_path}/none/b"\nbackend = "null"\n'
        '[device.c]\nbackend = "tap-fd:7"\n'
        f'[device.d]\nsocket = "{tmp_path}/f.toml"\nbackend = "null"\n'
    )
    assert main(["check", "--json", str(tmp_path / "f.toml")]) == 4
    checks = {c["check"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert {what: c["ok"] for what, c in checks.items() if c["needed-by"]} == {
        "a socket": True,
        "a backend": True,
        "b socket": False,
        "b backend": True,
        "c socket": True,
        "c backend": True,
        "d socket": False,
        "d backend": True,
    }
    assert f"the folder {tmp_path}/none is not there" in checks["b socket"]["said"]
    assert "FileDescriptorName=c" in checks["c socket"]["said"]


def test_what_is_in_use_is_no_fault_of_the_file(tmp_path, capsys):
    import socket

    (tmp_path / "f").write_text(f'[device.a]\nsocket = "{tmp_path}/a"\nbackend = "null"\n')
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(f"{tmp_path}/a")
        daemon.listen()
        assert main(["check", f"{tmp_path}/f"]) == 0
    assert "in use by process" in capsys.readouterr().out


def test_a_device_of_a_file_needs_a_socket_from_somewhere(tmp_path, capsys):
    path = tmp_path / "f"
    path.write_text('\n[device.a]\nbackend = "null"\n')
    read_config(str(path))
    assert main(["serve", "--config", str(path)]) == 3
    assert f"{path}:2: [device.a] socket is needed" in capsys.readouterr().err
