"""Outcome against outcome, field by field."""

from __future__ import annotations

import fnmatch
from typing import Any

from oracle.differences import DIFFERENCES, Difference


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path; a list is a leaf unless it holds dicts."""
    if isinstance(value, dict):
        found = {}
        for key, inner in value.items():
            found |= flat(inner, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        found = {}
        for at, inner in enumerate(value):
            found |= flat(inner, f"{path}.{at}")
        return found
    return {path: value}


def unequal(linux: Any, ours: Any) -> dict[str, tuple[Any, Any]]:
    """Field path -> (Linux's, ours), where they differ."""
    left, right = flat(linux), flat(ours)
    return {
        path: (left.get(path, "-"), right.get(path, "-"))
        for path in sorted(left.keys() | right.keys())
        if left.get(path, "-") != right.get(path, "-")
    }


def listed(name: str, version: str) -> list[Difference]:
    """What differences.py has for a scenario."""
    return [d for d in DIFFERENCES if d.scenario == name and (not d.linux or version in d.linux)]


def judge(name: str, version: str, linux: Any, ours: Any) -> tuple[list[str], list[str]]:
    """(differences that are not listed, listed patterns that do not occur), as text."""
    return unequal_but_for(listed(name, version), linux, ours)


def unequal_but_for(
    differences: list[Difference], linux: Any, ours: Any
) -> tuple[list[str], list[str]]:
    """As `judge`, with a list of one's own."""
    found = unequal(linux, ours)
    patterns = [p for d in differences for p in d.fields]
    new = [
        f"{path}: Linux {a!r}, ours {b!r}"
        for path, (a, b) in found.items()
        if not any(fnmatch.fnmatchcase(path, p) for p in patterns)
    ]
    stale = [p for p in patterns if not any(fnmatch.fnmatchcase(path, p) for path in found)]
    return new, stale
