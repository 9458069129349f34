"""Runs with low limits of the guards, and changed facts."""

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob.jobs.report import RunReport
from certjob.review import certification
from certjob.review.guards import MassChangeGuard
from tests.support.facts import TODAY
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

DAY = timedelta(days=1)
LAST_DAY = TODAY + 20 * DAY
HOLDS = "SELECT reason, count(*) FROM certjob_private.held_names GROUP BY reason ORDER BY reason"
HELD_MENTORS = "SELECT mentor_id, reason FROM still_due WHERE what = 'held' ORDER BY mentor_id"
PAUSED = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
HIDDEN = "SELECT id FROM mentors WHERE NOT portal_visible"
TWO_YEARS_BACK = "issued_on = issued_on - 730, expires_on = expires_on - 730"


def count_only_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count nothing before the first chunk, as if all facts changed after it. Each mentor is a chunk."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 1)
    monkeypatch.setattr(MassChangeGuard, "examine", lambda *_: None)


def join(scene: Scene, organisation: UUID, *, expired: int = 0, valid: int = 0) -> list[UUID]:
    """Add mentors."""
    last_days = [YESTERDAY] * expired + [NEXT_YEAR] * valid
    return [scene.facts.certified_mentor(organisation, last_day) for last_day in last_days]


def run(scene: Scene, *, allow: int = 0, **options: Any) -> RunReport:
    """Run without deliveries."""
    permitted = Counter(hlf=allow) if allow else Counter[str]()
    return scene.night(deliver=False, allow=permitted, **options)


def change(scene: Scene, mentors: list[UUID], statement: str) -> None:
    """Change the certificates of these mentors, as an import or a person does."""
    scene.run_sql(f"UPDATE certificates SET {statement} WHERE mentor_id = ANY (%s)", mentors)


def hidden(scene: Scene) -> set[UUID]:
    return {mentor for (mentor,) in scene.rows(HIDDEN)}


def held(report: RunReport) -> list[str]:
    """Return the beginnings of the lines about holds."""
    return [line.partition(";")[0] for line in report.held]
