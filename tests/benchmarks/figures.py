"""Figures, their references and targets, and the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A quantity and its limit."""

    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        is_low_enough = self.at_most is None or self.value <= self.at_most
        return is_low_enough and (self.at_least is None or self.value >= self.at_least)

    def __str__(self) -> str:
        bar = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        return f"{self.value:,.3g} {self.unit}, {bar}{'' if self.is_met else ': MISSED'}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The seconds of each round, for certjob and for the reference."""

    ours: Sequence[float]
    reference: Sequence[float]
    of_speeds: bool = False
    """0.85 means 85 % of the reference's speed."""

    @property
    def rounds(self) -> list[float]:
        pairs = zip(self.ours, self.reference, strict=True)
        return [theirs / mine if self.of_speeds else mine / theirs for mine, theirs in pairs]

    def bar(self, *, at_most: float | None = None, at_least: float | None = None) -> Bar:
        return Bar(value=median(self.rounds), unit="×", at_most=at_most, at_least=at_least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    ours: str
    reference: str = ""
    ratio: Ratio | None = None
    bars: Sequence[Bar] = ()
    notes: str = ""

    @property
    def is_met(self) -> bool:
        return all(bar.is_met for bar in self.bars)

    def cells(self) -> tuple[str, ...]:
        rounds = self.ratio.rounds if self.ratio is not None else []
        ratio = f"{median(rounds):.2f}" if rounds else ""
        spread = f"{min(rounds):.2f}–{max(rounds):.2f}" if len(rounds) > 1 else ""
        bars = "; ".join(filter(None, [*map(str, self.bars), self.notes]))
        return self.name, self.ours, self.reference, ratio, spread, bars


def in_turns(
    ours: Callable[[], float], reference: Callable[[], float], *, rounds: int, of_speeds: bool = False
) -> Ratio:
    """Run both sides, which return their seconds, in turns: A B, B A, A B, …"""
    sides: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in ((0, 1), (1, 0))[number % 2]:
            sides[side].append((ours, reference)[side]())
    return Ratio(*sides, of_speeds)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as text, one line each."""
    heads = ("what", "certjob", "reference", "ratio", "spread", "bars and notes")
    rows = [heads, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) - 1)]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
