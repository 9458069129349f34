"""What every part of the bench is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench_server import BenchServer
from tests.benchmarks.figures import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server, and how much is asked for."""

    server: BenchServer
    folder: Path
    """Removed at the end."""
    rounds: int
    mentors: int
    """The largest population."""
    shares: Sequence[int]
    """Per cent of the mentors who are due."""
    pushes: int
    """Pushes beside Procrastinate, twice the mails."""
    say: Callable[[str], None]
    """Tells whoever waits what is going on."""


Part = Callable[[Bench], list[Figure]]
