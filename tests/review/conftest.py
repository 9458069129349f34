"""The low limits of the guards."""

import pytest

from certjob.domain import holds
from certjob.review import certification


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard allows 2 mentors, or a seventh of the certified ones, and a chunk has 2, so that few are enough."""
    monkeypatch.setattr(holds, "LEAST", 2)
    monkeypatch.setattr(holds, "MOST_RETURNS", 2)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
