"""A figure, what it is compared with, and how the table and the JSON show it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

Side = Callable[[], float]
"""Does something once and returns the seconds that count."""


class Bar(Enum):
    """Which side of its bar a ratio has to be on."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The rounds' ratios, and the seconds that they are made of."""

    rounds: Sequence[float]
    ours_seconds: Sequence[float]
    reference_seconds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def ours(self) -> float:
        """The median of our seconds."""
        return statistics.median(self.ours_seconds)

    @property
    def reference(self) -> float:
        """The median of the reference's seconds."""
        return statistics.median(self.reference_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bar for a quantity itself, beside the one for the ratio."""

    value: float
    unit: str
    bar: tuple[Bar, float]

    @property
    def is_met(self) -> bool:
        return _is_met(self.value, self.bar)

    def __str__(self) -> str:
        kind, bar = self.bar
        return f"{self.value:,.3g} {self.unit}, {kind.value} {bar:g}{'' if self.is_met else ': MISSED'}"


def _is_met(value: float, bar: tuple[Bar, float]) -> bool:
    kind, limit = bar
    return value <= limit if kind is Bar.AT_MOST else value >= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    part: str
    name: str
    ours: str
    """What certjob did, with its unit."""
    reference: str = ""
    """What it is compared with, likewise."""
    ratio: Ratio | float | None = None
    bar: tuple[Bar, float] | None = None
    """For the ratio."""
    limits: Sequence[Limit] = ()
    notes: str = ""
    detail: dict[str, object] = field(default_factory=dict)
    """More for the JSON."""

    @property
    def value(self) -> float | None:
        """The ratio as one number."""
        return self.ratio.median if isinstance(self.ratio, Ratio) else self.ratio

    @property
    def is_met(self) -> bool | None:
        """Whether all bars are met; None without one."""
        verdicts = [limit.is_met for limit in self.limits]
        if self.bar is not None and self.value is not None:
            verdicts.append(_is_met(self.value, self.bar))
        return all(verdicts) if verdicts else None

    def to_document(self) -> dict[str, object]:
        """What the JSON has of it."""
        document: dict[str, object] = {
            "part": self.part,
            "name": self.name,
            "ours": self.ours,
            "reference": self.reference,
            "ratio": self.value,
            "bar": f"{self.bar[0].value} {self.bar[1]:g}" if self.bar else None,
            "limits": [str(limit) for limit in self.limits],
            "met": self.is_met,
            "notes": self.notes,
        }
        if isinstance(self.ratio, Ratio):
            document |= {
                "ratios": list(self.ratio.rounds),
                "ours_seconds": list(self.ratio.ours_seconds),
                "reference_seconds": list(self.ratio.reference_seconds),
            }
        return document | self.detail


def in_turns(ours: Side, reference: Side, *, rounds: int, more_is_better: bool = False) -> Ratio:
    """Run both sides in turns, A B, B A, A B, …; the ratio of a round is ours to the reference.

    With ``more_is_better`` it is the ratio of speeds, so that 0.85 means 85 % of the reference's speed.
    """
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        if number % 2 == 0:
            mine.append(ours())
            theirs.append(reference())
        else:
            theirs.append(reference())
            mine.append(ours())
    return paired(mine, theirs, more_is_better=more_is_better)


def paired(ours: Sequence[float], reference: Sequence[float], *, more_is_better: bool = False) -> Ratio:
    """The ratios of rounds that have been run."""
    pairs = zip(ours, reference, strict=True)
    return Ratio(
        rounds=[theirs / mine if more_is_better else mine / theirs for mine, theirs in pairs],
        ours_seconds=ours,
        reference_seconds=reference,
    )


def seconds(value: float) -> str:
    """A time as people read it.

    >>> seconds(0.0123), seconds(1.5), seconds(75.2)
    ('12 ms', '1.50 s', '75.2 s')
    """
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def per_second(number: float, value: float, what: str) -> str:
    """A speed as people read it.

    >>> per_second(200_000, 8, "events")
    '25,000 events/s'
    """
    return f"{number / value:,.0f} {what}/s"


def table(figures: Sequence[Figure]) -> str:
    """The figures as text in columns, one line each."""
    heads = ("part", "what", "certjob", "reference", "ratio", "spread", "bar", "", "notes")
    rows = [heads, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) - 1)]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(figure: Figure) -> tuple[str, ...]:
    rounds = figure.ratio.rounds if isinstance(figure.ratio, Ratio) else ()
    verdict = {None: "", True: "met", False: "MISSED"}[figure.is_met]
    return (
        figure.part,
        figure.name,
        figure.ours,
        figure.reference,
        "" if figure.value is None else f"{figure.value:.2f}",
        f"{min(rounds):.2f}–{max(rounds):.2f}" if len(rounds) > 1 else "",
        f"{figure.bar[0].value} {figure.bar[1]:g}" if figure.bar else "",
        verdict,
        "; ".join([*map(str, figure.limits), *([figure.notes] if figure.notes else [])]),
    )
