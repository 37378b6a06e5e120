"""What became of the stages of a seal."""

from __future__ import annotations

from dataclasses import dataclass, field


class Missing(Exception):
    """A stage, or a part of one, can not be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        holds: whether all of it does.
        detail: what holds, or why it does not.
        wanted: it is one that this door can have.
    """

    name: str
    holds: bool
    detail: str
    wanted: bool = True


@dataclass(slots=True)
class Report:
    """What holds for this process.

    Attributes:
        mode: as --sandbox; "none" has no stages.
        why: of "none".
    """

    mode: str = "none"
    why: str = "not sealed"
    stages: list[Stage] = field(default_factory=list)

    @property
    def lacking(self) -> list[Stage]:
        """What was wanted and does not hold."""
        return [stage for stage in self.stages if stage.wanted and not stage.holds]
