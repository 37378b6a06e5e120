"""The live view of `vhostnet top`, in textual.

States:

LIVE     the newest sample is shown
    Operations:  pause, or a step back
PAUSED   a sample of the past is shown; new ones are taken all the same
    Operations:  steps, and `end` or `space` to be LIVE again
    Caveats:     the history is bounded: what is shown moves on when it would fall out of it
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Header, Static

from vhostnet.cli.top_model import Sample, Top, cells, sparkline
from vhostnet.errors import VhostnetError

HISTORY_WIDTH = 40
_LEFT = ("device", "queue", "state")


class TopApp(App[None]):
    """Ask every *interval* seconds, and show.

    Attributes:
        failure: what ended it, if the daemon did.
    """

    TITLE = "vhostnet top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("space", "pause", "pause"),
        Binding("left", "step(-1)", "back", priority=True),
        Binding("right", "step(1)", "forward", priority=True),
        Binding("home", "oldest", "oldest", priority=True),
        Binding("end", "now", "now", priority=True),
    ]

    def __init__(self, top: Top, interval: float) -> None:
        super().__init__()
        self._top = top
        self._interval = interval
        #: the end of the interval that is shown, None: LIVE
        self._shown_ns: int | None = None
        self.failure: VhostnetError | None = None

    def compose(self) -> ComposeResult:
        yield Header()
        yield Static(id="when", markup=False)
        yield DataTable(cursor_type="none", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        self._take()
        self.set_interval(self._interval, self._take)

    def action_pause(self) -> None:
        """Stop at what is shown, or go on."""
        samples = self._top.samples
        self._shown_ns = samples[-1].clock_ns if self._shown_ns is None and samples else None
        self._show()

    def action_step(self, by: int) -> None:
        """A sample back or forward; beyond the newest one is LIVE."""
        self._go_to(self._at() + by)

    def action_oldest(self) -> None:
        """The oldest sample that is kept."""
        self._go_to(0)

    def action_now(self) -> None:
        """LIVE again."""
        self._shown_ns = None
        self._show()

    def _go_to(self, at: int) -> None:
        samples = self._top.samples
        is_live = at >= len(samples)
        self._shown_ns = None if is_live else samples[max(0, at)].clock_ns
        self._show()

    def _take(self) -> None:
        try:
            self._top.take()
        except VhostnetError as error:
            self.failure = error
            self.exit()
            return
        self._show()

    def _at(self) -> int:
        """Which sample is shown; the oldest, if it is not kept any more."""
        if self._shown_ns is None:
            return len(self._top.samples) - 1
        numbers = (n for n, s in enumerate(self._top.samples) if s.clock_ns >= self._shown_ns)
        return next(numbers, len(self._top.samples) - 1)

    def _show(self) -> None:
        at = self._at()
        sample = self._top.samples[at]
        newest = self._top.samples[-1]
        ago = (newest.clock_ns - sample.clock_ns) / 1e9
        state = "live" if self._shown_ns is None else f"paused, {ago:.1f} s ago"
        where = f"{state}   sample {at + 1} of {len(self._top.samples)}"
        self.query_one("#when", Static).update(where)
        self._fill(sample, at)

    def _fill(self, sample: Sample, at: int) -> None:
        board = self.query_one(DataTable)
        board.clear(columns=True)
        rows = [cells(row) for row in sample.rows]
        if not rows:
            board.add_column("no devices")
            return
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        for name, width in widths.items():
            board.add_column(name.ljust(width) if name in _LEFT else name.rjust(width))
        board.add_column("packets".ljust(HISTORY_WIDTH))
        for row, texts in zip(sample.rows, rows, strict=True):
            padded = [
                text if name in _LEFT else text.rjust(widths[name]) for name, text in texts.items()
            ]
            board.add_row(*padded, sparkline(self._top.history(row.key, at, HISTORY_WIDTH)))
