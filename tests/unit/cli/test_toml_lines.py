"""The lines of keys: against documents whose lines are known, since the test wrote them."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.cli.toml_lines import Path, key_lines


def test_what_looks_like_a_key_and_is_none_is_not_found():
    text = (
        '# a = 1\ntop = "b = 2"  # c = 3\ns = """\nd = 4\n[e]\n\\""" """""\n'
        "l = '''\n[f]\ng = 5 '''\nlist = [ # h = 6\n"
        "  \"]\",\n  [1, '['],\n  { k = '}', m.n = 2 },\n]\n"
        '[t . "u.v"]\nw = 1979-05-27 07:32:00\n'
    )
    tomllib.loads(text)
    assert key_lines(text) == {
        ("top",): 2,
        ("s",): 3,
        ("l",): 7,
        ("list",): 10,
        ("list", 0): 11,
        ("list", 1): 12,
        ("list", 1, 0): 12,
        ("list", 1, 1): 12,
        ("list", 2): 13,
        ("list", 2, "k"): 13,
        ("list", 2, "m"): 13,
        ("list", 2, "m", "n"): 13,
        ("t",): 15,
        ("t", "u.v"): 15,
        ("t", "u.v", "w"): 16,
    }


def test_a_list_of_tables_counts_its_elements():
    text = "[[p]]\nx = 1\n[p.q]\ny = 2\n[[p]]\nx = 3\n[p.q]\ny = 4\n[[p.r]]\n[[p.r]]\nz = 5\n"
    tomllib.loads(text)
    lines = key_lines(text)
    assert lines["p", 0, "x"] == 2
    assert lines["p", 0, "q", "y"] == 4
    assert lines["p", 1, "x"] == 6
    assert lines["p", 1, "q", "y"] == 8
    assert lines["p", 1, "r", 1, "z"] == 11


@pytest.mark.parametrize("text", ["", "\n\n# only this", "a=1", "[t]", "a = 1\r\n\r\nb = 2\r\n"])
def test_short_documents_end_too(text):
    assert set(key_lines(text)) == set(_paths(tomllib.loads(text)))


def _paths(value: Any, path: Path = ()) -> list[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[Path] = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, (dict, list)):
            found += _paths(item, (*path, key))
    return found


names = st.sampled_from(["a", "b-c", "d_1", "1", "e.f", "g h", "", "ä", '"', "#", "[x]", "= 1"])
scalars = st.one_of(
    st.integers(-9, 99).map(str),
    st.sampled_from(["true", "1e3", "inf", "07:32:00", "1979-05-27T07:32:00Z", "''", "'a # = ['"]),
    st.text(st.sampled_from("ab =\"\\#[]{}'\t"), max_size=8).map(json.dumps),
    st.sampled_from(['"""\nx = 1\n"""', "'''\n[y]\n'''", '"""a\\"""b"""', "''''z'''''"]),
)
spaces = st.sampled_from(["", " ", "\t", "  "])
line_ends = st.sampled_from(["\n", " # c = 1\n", "\n\n", "\n# [d]\n"])
values = st.recursive(
    scalars,
    lambda inner: st.tuples(st.lists(inner, max_size=3), line_ends).map(
        lambda drawn: f"[{drawn[1]}" + f",{drawn[1]}".join(drawn[0]) + f"{drawn[1]}]"
    ),
    max_leaves=6,
)


pairs = st.tuples(names, values, spaces, line_ends)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), names),
            st.lists(
                st.tuples(names, values, spaces, line_ends), max_size=4, unique_by=lambda x: x[0]
            ),
        ),
        max_size=4,
        unique_by=lambda x: x[0],
    )
)
def test_every_key_of_a_document_is_found_on_the_line_where_it_was_written(tables):
    text = ""
    expected: dict[Path, int] = {}
    for table, entries in sorted(tables, key=lambda x: x[0] is not None):
        path: Path = ()
        if table is not None:
            path = ("table", table)
            expected.setdefault(("table",), text.count("\n") + 1)
            expected[path] = text.count("\n") + 1
            text += f"[table.{json.dumps(table)}]\n"
        for name, value, space, end in entries:
            expected[(*path, name)] = text.count("\n") + 1
            text += f"{json.dumps(name)}{space}={space}{value}{end}"
    found = key_lines(text)
    assert set(found) == set(_paths(tomllib.loads(text)))
    assert {path: found[path] for path in expected} == expected
