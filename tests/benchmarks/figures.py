"""Figures, their targets, and the table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: the median of the rounds, and its target."""

    name: str
    rounds: Sequence[float]
    unit: str
    at_most: float = math.inf
    at_least: float = 0.0
    notes: str = ""

    @property
    def is_met(self) -> bool:
        return self.at_least <= median(self.rounds) <= self.at_most

    def cells(self) -> tuple[str, ...]:
        target = f"≥ {self.at_least:g}" if self.at_least else f"≤ {self.at_most:g}"
        return (
            self.name,
            f"{median(self.rounds):,.3g} {self.unit}",
            f"{min(self.rounds):,.3g} to {max(self.rounds):,.3g}",
            target if self.is_met else f"{target} MISSED",
            self.notes,
        )


def in_turns(ours: Callable[[], float], reference: Callable[[], float], *, number: int) -> tuple[float, float]:
    """Measure both sides; the reference comes first in every second round."""
    if number % 2:
        theirs = reference()
        return ours(), theirs
    return ours(), reference()


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as text, one line each."""
    rows = [("what", "result", "rounds", "target", "notes"), *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
