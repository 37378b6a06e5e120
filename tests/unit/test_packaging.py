"""What packages carry: it says what the program does, and what others expect of it."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from vhostnet.cli import main as cli_main
from vhostnet.cli import serve
from vhostnet.cli.device_options import devices_of
from vhostnet.cli.main import COMMANDS
from vhostnet.cli.parser import Parser
from vhostnet.errors import EXIT_STATUSES

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
PARSER = shutil.which("apparmor_parser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.fixture(scope="module")
def make_man() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_man", PACKAGING / "make_man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_description_is_what_management_layers_look_for():
    # Source: QEMU's docs/interop/vhost-user.json, VhostUserBackend
    told = json.loads((PACKAGING / "50-vhostnet.json").read_text())
    assert set(told) <= {"description", "type", "binary", "tags"}
    assert {"description", "type", "binary"} <= set(told)
    assert told["type"] == "net"
    assert Path(told["binary"]).is_absolute()


def unit(name: str) -> configparser.ConfigParser:
    class Unit(configparser.RawConfigParser):
        def optionxform(self, optionstr: str) -> str:
            return optionstr

    parser = Unit(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read_string((PACKAGING / "systemd" / name).read_text().replace("%i", "tap0"))
    return parser


@pytest.mark.parametrize("name", ["vhostnet.service", "vhostnet@.service"])
def test_a_unit_runs_a_command_line_that_there_is(name):
    program, command, *words = shlex.split(unit(name)["Service"]["ExecStart"])
    assert (program, command) == ("/usr/bin/vhostnet", "serve")
    parser = Parser(prog="vhostnet serve")
    serve.add_arguments(parser)
    args = parser.parse(words)
    if args.config is None:
        [device] = devices_of(args, is_activated=True)
        assert (device.name, device.backend) == ("tap0", "tap:tap0")
        assert unit("vhostnet@.socket")["Socket"]["FileDescriptorName"] == device.name


@pytest.mark.parametrize("name", ["vhostnet.service", "vhostnet@.service"])
def test_a_unit_does_not_forbid_what_the_program_needs(name):
    service = unit(name)["Service"]
    assert service["Type"] == "notify"
    assert "MemoryDenyWriteExecute" not in service
    assert service["DeviceAllow"] == "/dev/net/tun rw"
    assert "CAP_NET_ADMIN" in service["AmbientCapabilities"]
    assert set(service["RestartPreventExitStatus"].split()) <= set(EXIT_STATUSES)


def test_both_units_are_closed_alike():
    one, many = unit("vhostnet.service")["Service"], unit("vhostnet@.service")["Service"]
    differ = {key for key in {*one, *many} if one.get(key) != many.get(key)}
    assert differ == {"ExecStart", "ExecReload", "RuntimeDirectory", "RuntimeDirectoryPreserve"}


def test_exit_statuses_are_the_same_in_the_help_and_in_the_documentation():
    table = "".join(f"| {status} | {text} |\n" for status, text in EXIT_STATUSES.items())
    assert table in (ROOT / "docs/use.md").read_text()
    for status, text in EXIT_STATUSES.items():
        assert f"  {status:7}{text}" in cli_main.EPILOG


def test_there_is_a_page_for_each_command_with_all_its_options(make_man):
    pages = make_man.pages()
    assert set(pages) == {"vhostnet.1", *(f"vhostnet-{command}.1" for command in COMMANDS)}
    parser = Parser(prog="vhostnet serve")
    serve.add_arguments(parser)
    text = pages["vhostnet-serve.1"].replace("\\-", "-")
    for option in parser._option_string_actions:
        assert re.search(rf"^\.B .*{re.escape(option)}(?![\w-])", text, re.MULTILINE), option
    for heading in ("HOW IT WORKS", "EXAMPLES", "EXIT STATUS", "SIGNALS", "BACKENDS"):
        assert f".SH {heading}\n" in text


@pytest.mark.skipif(PARSER is None, reason="needs apparmor_parser (apparmor)")
def test_the_apparmor_profile_is_one():
    # quiet about a kernel that has no AppArmor
    words = [str(PARSER), "--skip-kernel-load", "--skip-cache", "--quiet"]
    subprocess.run([*words, str(PACKAGING / "apparmor" / "vhostnet-serve")], timeout=60, check=True)
    for name in ("vhostnet.service", "vhostnet@.service"):
        assert unit(name)["Service"]["AppArmorProfile"] == "-vhostnet-serve"


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_pages_are_roff_without_a_warning(make_man):
    for name, text in make_man.pages().items():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", "-rLL=200n", "-z"],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), name
