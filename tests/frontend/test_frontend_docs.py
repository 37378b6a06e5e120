"""The examples of docs/frontend.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vhostnet_frontend

TEXT = (Path(__file__).parents[2] / "docs" / "frontend.md").read_text()
BLOCK = re.compile(
    r"^### (?P<title>.*?)$(?P<between>(?:(?!^##).)*?)^```python\n(?P<code>.*?)^```", re.M | re.S
)
EXAMPLES = [
    pytest.param(match["code"], id=match["title"])
    for match in BLOCK.finditer(TEXT)
    if "needs: /dev/vhost-net" not in match["between"]
]


def kernel_example() -> str:
    """The example that needs /dev/vhost-net; test_kernel_vhost_net runs it in a guest."""
    (code,) = [m["code"] for m in BLOCK.finditer(TEXT) if "needs: /dev/vhost-net" in m["between"]]
    return code


def test_there_are_as_many_examples_as_blocks() -> None:
    assert len(EXAMPLES) + 1 == TEXT.count("```python")
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_runs(code: str, loop_daemon: str) -> None:
    assert "/tmp/vhostnet.sock" in code
    exec(compile(code.replace("/tmp/vhostnet.sock", loop_daemon), "docs/frontend.md", "exec"), {})


def test_the_kernel_example_is_python() -> None:
    compile(kernel_example(), "docs/frontend.md", "exec")


def test_the_table_names_every_module_and_only_names_that_exist() -> None:
    rows = re.findall(r"^\| ((?:`\w+`,? ?)+) \| ((?:`\w+`,? ?)+) \|", TEXT, re.M)
    modules = [module for row in rows for module in re.findall(r"`(\w+)`", row[0])]
    folder = Path(vhostnet_frontend.__file__).parent
    internal = {
        "__init__",
        "memory_raw",
        "fast_layout",
        "fast_ops",
        "fast_split",
        "fast_packed",
        "fast_flood",
    }
    assert set(modules) == {file.stem for file in folder.glob("*.py")} - internal
    for row in rows:
        loaded = [
            __import__(f"vhostnet_frontend.{m}", fromlist=["x"])
            for m in re.findall(r"`(\w+)`", row[0])
        ]
        for name in re.findall(r"`(\w+)`", row[1]):
            assert any(hasattr(module, name) for module in loaded), name
