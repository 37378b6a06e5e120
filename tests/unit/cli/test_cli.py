"""The command line: one line and one exit status for every mistake, and the daemon's manners."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host import RUNS_TREES
from serve_process import PATIENCE_S, READY_S
from vhostnet import __version__
from vhostnet.backends import backend_kind
from vhostnet.cli import logs, readiness, serve, warm
from vhostnet.cli import main as cli_main
from vhostnet.cli.device_options import devices_of, split_keys
from vhostnet.cli.main import COMMANDS, main
from vhostnet.cli.options import DAEMON_OPTIONS, DEVICE_KEYS, DEVICE_OPTIONS, values_of
from vhostnet.cli.parser import Parser
from vhostnet.datapath import catalogue
from vhostnet.errors import HostError, PeerError, UsageError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

GET_FEATURES = struct.pack("=III", 1, 1, 0)
NULL = ["--backend", "null"]
PORTS = ["--device", "socket=s,backend=port:x", "--device", "socket=t,backend=port:x"]

WRONG = [
    ([], f"a command is needed: {', '.join(COMMANDS)}"),
    (["serv"], "there is no command 'serv' (did you mean serve?)"),
    (["frobnicate"], f"commands are {', '.join(COMMANDS)}"),
    (["--versoin"], "there is no option --versoin (did you mean --version?)"),
    (["chardev", "--name", "a/b"], "--name: 'a/b' can be no node's name"),
    (["chardev", "--mode", "99"], "--mode: '99' is not an octal mode such as 660"),
    (["chardev", "--group", "nobody-has-it"], "--group: no group is called 'nobody-has-it'"),
    (["chardev", "--packed-rings", "--linux-abi=6.1"], "--packed-rings: no driver of Linux 6.1"),
    (["chardev", "--linux-abi", "5"], "--linux-abi: '5' is not one of 6.1, 6.12, newest"),
    (["chardev", "--replace"], "there is no option --replace (did you mean --replace-node?)"),
    (["serve"], "one of --socket-path, --fd, --device and --config is needed"),
    (["serve", "--socket-path", "s"], "--backend is needed: one of tap:NAME"),
    (["serve", "--sockt-path=s"], "there is no option --sockt-path (did you mean --socket-path?)"),
    (["serve", "--socket", "s"], "there is no option --socket"),
    (["serve", "--socket-path"], "--socket-path: expected one argument"),
    (["serve", "--socket-path", "s", *NULL, "extra"], "what is 'extra' for?"),
    (["serve", "--socket-path", "", *NULL], "--socket-path: the socket path is empty"),
    (["serve", "--socket-path", "x" * 108, *NULL], "a unix socket allows 107"),
    (["serve", "--socket-path", "s", "--fd", "3", *NULL], "exclude each other"),
    (["serve", "--fd", "3", "--client", *NULL], "--client goes with --socket-path"),
    (["serve", "--fd", "-1", *NULL], "--fd: "),
    (["serve", "--fd", "three", *NULL], "--fd: 'three' is not a number"),
    (["--fd=999999", *NULL], "--fd: 999999: Bad file descriptor"),
    (["--socket-path=s", "--backend=nul"], "unknown backend 'nul'"),
    (["--socket-path=s", "--backend=nul"], "(did you mean null?)"),
    (["--socket-path=s", "--backend=tap"], "--backend: "),
    (["--socket-path=s", "--backend=gen:size=1"], "--backend: "),
    (["--socket-path=s", "--backend=gen:size=imx"], "N the frame's bytes (or imix)"),
    (["serve", "--socket-path=s", *NULL, "--queue-pairs", "0"], "--queue-pairs: '0' is not"),
    (["serve", "--socket-path=s", *NULL, "--queue-pairs", "128"], "number from 1 to 127"),
    (["serve", "--socket-path=s", *NULL, "--queue-pairs", "1_0"], "number from 1 to 127"),
    (["serve", "--socket-path=s", *NULL, "--socket-mode", "888"], "is not an octal mode"),
    (["serve", "--socket-path=s", *NULL, "--socket-mode", "7777"], "is not an octal mode"),
    (["serve", "--socket-path=s", *NULL, "--socket-group", "no-such"], "--socket-group: no group"),
    (["serve", "--socket-path=s", *NULL, "--ready-fd", "999999"], "--ready-fd: 999999: Bad file"),
    (
        ["serve", "--socket-path=s", *NULL, "--log-level", "loud"],
        "--log-level: 'loud' is not one of",
    ),
    (["serve", "--device", "socket=s"], "backend= is needed"),
    (["serve", "--device", "backend=null"], "socket= is needed"),
    (["serve", "--device", "socket=s,backend=null,queue-pair=2"], "did you mean queue-pairs?"),
    (
        ["serve", "--device", "socket=s,backend=null,zzz=2"],
        "keys are name, socket, client, backend",
    ),
    (["serve", "--device", "socket=s,backend=null,queue-pairs=x"], "queue-pairs: 'x' is not"),
    (["serve", "--device", "socket=s,backend=null,client=yes"], "must be on or off"),
    (["serve", "--device", "socket=s,backend=null,client"], "'client' is not KEY=VALUE"),
    (["serve", "--device", "socket=s,socket=t,backend=null"], "socket is given twice"),
    (["serve", "--device", "socket=s,backend=nil"], "--device: backend: unknown backend 'nil'"),
    (["serve", "--device", "socket=s,backend=null", *NULL], "--backend and --device exclude"),
    (
        ["serve", "--device", "socket=s,backend=null,name=a b"],
        "--device: name: 'a b' is not a name",
    ),
    (["serve", *["--device", "socket=s,backend=null"] * 2], "two devices have the socket s"),
    (
        ["serve", *["--device", "socket=s,backend=tap:t", "--device", "socket=u,backend=tap:t"]],
        "--device: backend: two devices have tap:t",
    ),
    (
        ["serve", "--socket-path=s", "--backend=tap-fd:3", "--queue-pairs=2"],
        "tap-fd:3 has 1 descriptors for 2 queue pairs",
    ),
    (["serve", "--socket-path=s", *NULL, "--fill-checksums"], "--fill-checksums: works with a TAP"),
    (["serve", "--socket-path=s", *NULL, "--busy-poll-adaptive"], "needs busy-poll-us, the most"),
    (["serve", "--socket-path=s", *NULL, "--linux-abi=6.2"], "'6.2' is not one of 6.1, 6.12, new"),
    (["serve", "--device", "socket=s,backend=null,linux-abi=5"], "--device: linux-abi: '5' is"),
    (["serve", "--socket-path=s", "--backend=port"], "port:NAME takes a name"),
    (["serve", "--socket-path=s", "--backend=port:x"], "port:x: one device has it; it joins two"),
    (["serve", *PORTS[:2]], "port:x: one device has it; it joins two"),
    (
        ["serve", *PORTS, "--device", "socket=u,backend=port:x"],
        "port:x joins two",
    ),
    (["serve", *PORTS[:3], f"{PORTS[3]},queue-pairs=2"], "have 1 and 2 queue pairs"),
    (["serve", *PORTS[:3], f"{PORTS[3]},iommu=on"], "iommu: does not work with port:x"),
    (["serve", *PORTS[:3], f"{PORTS[3]},fill-checksums=on"], "works with a TAP only"),
    (["serve", "--linux-abi=6.1", "--device", "socket=s,backend=null"], "--linux-abi and --device"),
    (["warm", "--lits"], "did you mean --list?"),
    (["demo", "--quik"], "did you mean --quick?"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda x: " ".join(x) if x else "nothing")
def test_a_wrong_command_line_ends_with_status_2_and_one_line_that_helps(words, text, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vhostnet: ")
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "a command is needed: vhostnet run [options] -- COMMAND ..."),
        (["--"], "a command is needed"),
        (["--log-level=info"], "a command is needed"),
        (["qemu", "-m", "1G"], "what is 'qemu' for?"),
        (["--linux-ab=6.1", "--", "true"], "did you mean --linux-abi?"),
        (["--packed-rings", "--linux-abi=6.12", "--", "true"], "no driver of Linux 6.12 has"),
        (["--linux-abi=6.2", "--", "true"], "--linux-abi: '6.2' is not one of"),
        (["--log-file=/no/such/folder", "--", "true"], "--log-file: /no/such/folder: No such"),
    ],
    ids=lambda x: " ".join(x) if x else "nothing",
)
def test_what_is_wrong_with_run_itself_has_a_status_that_commands_do_not_have(words, text, capsys):
    assert main(["run", *words]) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vhostnet: ")
    assert err.count("\n") == 1
    assert text in err


@RUNS_TREES
def test_options_of_the_command_that_is_run_are_its_own():
    ended = subprocess.run(
        [sys.executable, "-m", "vhostnet", "run", "--", "echo", "--help", "--print-capabilities"],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=True,
    )
    assert ended.stdout == "--help --print-capabilities\n"


def test_a_socket_that_can_not_be_made_ends_with_status_4_before_anything_is_compiled(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "s").write_text("")
    monkeypatch.setattr(catalogue, "warm", lambda *_: pytest.fail("it compiles"))
    assert main(["serve", "--socket-path", str(tmp_path / "s"), *NULL]) == 4
    assert "exists and is no socket" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UsageError("not so"), 2, "not so"),
        (HostError("no TAP", 1), 4, "no TAP"),
        (PeerError("bad header"), 5, "bad header"),
        (ZeroDivisionError("division\nby zero"), 70, "bug in this program: ZeroDivisionError"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_errors_become_exit_statuses_and_one_line(monkeypatch, capsys, error, status, text):
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr(warm, "main", fail)
    assert main(["warm"]) == status
    err = capsys.readouterr().err
    if text is None:
        assert err == ""
    else:
        assert err.startswith(f"vhostnet: {text}")
        assert err.count("\n") == 1


def test_a_bug_shows_its_traceback_only_at_log_level_debug(monkeypatch, capsys):
    monkeypatch.setattr(serve, "devices_of", lambda _args: 1 // 0)
    assert main(["serve", "--log-level", "debug"]) == 70
    assert "Traceback" in capsys.readouterr().err
    assert main(["serve", "--log-level=info"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--log-level debug shows where" in err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_printed_and_gives_examples(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command.split(), "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: vhostnet")
    if command in ("", "serve", "warm"):
        assert "xample" in out


def test_the_kernels_can_be_listed(capsys):
    pytest.importorskip("vhostnet.datapath.catalogue")
    assert main(["warm", "--list"]) == 0
    assert "null" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"vhostnet {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--print-capabilities"],
        ["serve", "--print-capabilities"],
        ["--socket-path=/none", "--print-capabilities", "--nonsense"],
    ],
)
def test_capabilities_are_printed_whatever_else_is_asked_for(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    told = json.loads(out)
    assert out.count("\n") == 1
    assert told["type"] == "net"
    assert told["version"] == __version__
    assert told["features"] == [
        "mq",
        "log-shmfd",
        "rarp",
        "reply-ack",
        "mtu",
        "backend-req",
        "reset-device",
        "configure-mem-slots",
        "status",
    ]
    assert told["backends"] == ["tap", "tap-fd", "null", "loop", "gen", "port"]
    assert told["front-doors"] == ["vhost-user", "run", "chardev"]


@pytest.mark.parametrize(
    "words",
    [["--print-capabilities"], ["serve", "--help"], ["warm", "--help"], ["demo", "--help"], []],
)
def test_what_needs_no_data_path_does_not_import_numba(words):
    code = (
        "import sys\n"
        "from vhostnet.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('numba', 'numpy', 'llvmlite')))"
    )
    assert subprocess.run([sys.executable, "-c", code, *words], capture_output=True).returncode == 0


def parsed(*words: str) -> Any:
    parser = Parser(prog="vhostnet serve")
    serve.add_arguments(parser)
    return parser.parse(words)


def test_flat_options_make_one_device():
    args = parsed("--socket-path", "s", "--client", "--backend", "tap:t0", "--queue-pairs", "4")
    assert devices_of(args) == (
        DeviceOptions("--socket-path", "tap:t0", socket_path="s", is_client=True, queue_pairs=4),
    )


def test_device_options_make_many_devices_and_a_doubled_comma_is_one():
    args = parsed(
        "--device",
        "socket=/run/a,,b,backend=gen:size=64,queue-pairs=127",
        "--device",
        "socket=c,backend=tap:t0,client=on,fill-checksums=on",
    )
    first, second = devices_of(args)
    assert (first.socket_path, first.backend, first.queue_pairs) == ("/run/a,b", "gen:size=64", 127)
    assert (second.is_client, second.fill_checksums, second.queue_pairs) == (True, True, 1)


def test_coalescing_is_on_unless_it_is_switched_off():
    [device] = devices_of(parsed("--socket-path", "s", "--backend", "tap:t0"))
    assert device.coalesce
    assert backend_kind(device.backend, device.coalesce) == "coalescing-tap"
    [device] = devices_of(parsed("--socket-path", "s", "--backend", "tap:t0", "--coalesce", "off"))
    assert not device.coalesce
    assert backend_kind(device.backend, device.coalesce) == "tap"
    [device] = devices_of(parsed("--device", "socket=s,backend=tap-fd:3,coalesce=off"))
    assert not device.coalesce
    with pytest.raises(UsageError, match="coalesce: 'yes' must be on or off"):
        devices_of(parsed("--device", "socket=s,backend=tap:t0,coalesce=yes"))
    with pytest.raises(UsageError, match="--coalesce and --device exclude each other"):
        devices_of(parsed("--device", "socket=s,backend=tap:t0", "--coalesce", "off"))


def test_the_version_of_linux_is_an_option_and_a_key():
    [device] = devices_of(parsed("--socket-path", "s", *NULL))
    assert device.linux_abi == "newest"
    [device] = devices_of(parsed("--socket-path", "s", *NULL, "--linux-abi", "6.12"))
    assert device.linux_abi == "6.12"
    [device] = devices_of(parsed("--device", "socket=s,backend=null,linux-abi=6.1"))
    assert device.linux_abi == "6.1"


def test_every_option_of_a_device_is_a_field_of_it_with_the_same_default():
    defaults = {f.name: f.default for f in dataclasses.fields(DeviceOptions)}
    declared = {option.attribute: option.default for option in DEVICE_OPTIONS}
    assert {*declared, "option"} == set(defaults)
    for field, default in declared.items():
        if field not in ("backend", "name"):  # needed; and numbered
            assert default == defaults[field], field


def test_a_device_is_called_as_it_is_told_or_by_its_number():
    words = ["--device", "socket=s,backend=null", "--device", "socket=t,backend=null,name=vm2"]
    assert [device.name for device in devices_of(parsed(*words))] == ["dev0", "vm2"]
    with pytest.raises(UsageError, match="--device: name: two devices have the name dev1"):
        devices_of(parsed("--device", "socket=s,backend=null,name=dev1", *words[:2]))


def test_all_keys_of_a_device_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    out = "".join(capsys.readouterr().out.split())
    for key, option in DEVICE_KEYS.items():
        assert f"{key}={option.kind.metavar}" in out
        assert option.option_string in out


def test_a_value_may_have_an_equals_sign():
    assert split_keys("backend=gen:size=64,socket=a=b") == {
        "backend": "gen:size=64",
        "socket": "a=b",
    }


def test_the_socket_is_for_its_owner_unless_a_group_or_mode_is_given():
    for words, mode in (
        ([], 0o600),
        (["--socket-group", str(os.getgid())], 0o660),
        (["--socket-mode", "666"], 0o666),
    ):
        settings = values_of(parsed("--fd", "3", *NULL, *words), DAEMON_OPTIONS)
        assert serve._daemon_options((), settings, {}).socket_mode == mode


def test_ready_is_written_once_and_the_descriptor_closed(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        readiness.tell_ready(writer)
        assert systemd.recv(64) == b"READY=1\n"
    assert os.read(reader, 64) == b"READY=1\n"
    assert os.read(reader, 64) == b""
    os.close(reader)


@pytest.mark.parametrize("form", ["text", "logfmt", "json"])
def test_a_log_record_is_one_line_in_every_form(form):
    code = (
        "import logging; from vhostnet.cli.logs import set_up;"
        f"set_up({{'': 'info'}}, {form!r}); logging.getLogger('vhostnet').info('a \"b\" = c')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    if form == "json":
        told = json.loads(done.stderr)
        assert (told["msg"], told["level"], told["area"]) == ('a "b" = c', "info", "daemon")
    elif form == "logfmt":
        assert 'msg="a \\"b\\" = c"' in done.stderr
    else:
        assert done.stderr == 'vhostnet: a "b" = c\n'


def test_areas_have_levels_of_their_own_which_can_be_changed_at_any_time():
    device, tap = logging.getLogger("vhostnet.device"), logging.getLogger("vhostnet.tap")
    logs.set_up(logs.parse_levels("warning,device=debug"), "text")
    assert device.isEnabledFor(logging.DEBUG)
    assert not tap.isEnabledFor(logging.INFO)
    logs.set_levels(logs.parse_levels("info"))
    assert not device.isEnabledFor(logging.DEBUG)
    assert tap.isEnabledFor(logging.INFO)
    logs.set_levels(logs.parse_levels("tap=error"))
    assert device.isEnabledFor(logging.INFO)
    assert not tap.isEnabledFor(logging.WARNING)
    logs.set_levels({})
    assert tap.isEnabledFor(logging.INFO)


def test_every_logger_of_the_program_is_an_area():
    named = set()
    for path in Path(cli_main.__file__).parents[1].rglob("*.py"):
        named |= set(re.findall(r'getLogger\("vhostnet\.([^".]+)"\)', path.read_text()))
    assert named == set(logs.AREAS)


class Served:
    """`vhostnet serve` as a child, ready."""

    def __init__(self, words: list[str], *fds: int) -> None:
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vhostnet", "serve", "--ready-fd", str(writer), *words],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[writer, *fds],
        )
        os.close(writer)
        self.said = b"".join(iter(lambda: os.read(reader, 64), b""))
        os.close(reader)

    def wait(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(path)
    return sock


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_served_daemon_ends_with_status_0_and_removes_its_sockets(path, signum):
    words = ["--device", f"socket={path},backend=null", "--device", f"socket={path}2,backend=loop"]
    served = Served(words)
    assert served.said == b"READY=1\n"
    with connect(path) as sock:
        sock.sendall(GET_FEATURES)
        assert len(sock.recv(64)) == 20
        served.process.send_signal(signum)
        status, err = served.wait()
        assert sock.recv(64) == b""
    assert status == 0
    assert "dev0: closed the session: vhostnet ends" in err
    assert not os.path.exists(path + "2")


def test_a_served_card_offers_what_its_version_of_linux_has(path):
    in_order, packed, version_1 = 1 << 35, 1 << 34, 1 << 32
    new, old = f"{path}new", f"{path}old"
    devices = [f"socket={new},backend=null", f"socket={old},backend=null,linux-abi=6.1"]
    served = Served(["--device", devices[0], "--device", devices[1]])
    offered = []
    for where in (new, old):
        with connect(where) as sock:
            sock.sendall(GET_FEATURES)
            offered.append(struct.unpack("=12xQ", sock.recv(64))[0])
    served.process.send_signal(signal.SIGTERM)
    assert served.wait()[0] == 0
    assert offered[0] & version_1
    assert offered[0] ^ offered[1] == in_order | packed


def test_a_one_off_daemon_tells_by_its_status_that_the_front_end_broke_the_protocol(path):
    served = Served(["--one-off", "--socket-path", path, *NULL])
    with connect(path) as sock:
        sock.sendall(struct.pack("=III", 1, 0, 0))
        status, err = served.wait()
    assert status == 5
    assert err.splitlines()[-1] == (
        "vhostnet: dev0: closed the session: GET_FEATURES: header says version 0, only 1 exists"
    )


def test_an_inherited_socket_is_served_to_its_end():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        served = Served(["--fd", str(theirs.fileno()), *NULL], theirs.fileno())
        theirs.close()
        ours.settimeout(PATIENCE_S)
        ours.sendall(GET_FEATURES)
        assert len(ours.recv(64)) == 20
        ours.close()
        assert served.wait()[0] == 0


def test_the_program_can_be_run_as_a_module_and_as_a_script():
    assert cli_main.main is main
    for command in (
        [sys.executable, "-m", "vhostnet"],
        [str(Path(sys.executable).parent / "vhostnet")],
    ):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert done.stdout == f"vhostnet {__version__}\n"
