"""The low limits of the guards."""

import pytest

from tests.review.guarding import lower_limits


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard allows 2 changes, and a chunk has 2 mentors, so that few mentors are enough."""
    lower_limits(monkeypatch)
