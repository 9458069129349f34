"""Runs on a wrong, later date: nothing runs on an earlier one until a person says which date is right."""

from datetime import timedelta

import pytest

from certjob.errors import ConfigurationError
from certjob.review.days import refuse_earlier_date
from tests.support.facts import TODAY
from tests.support.scene import Scene

IN_A_YEAR = TODAY + timedelta(days=365)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "died"])
def test_run_after_a_later_date_is_refused(scene: Scene, ended: bool) -> None:
    """One consent is enough: it reviews every mentor again, and the next runs need none."""
    scene.certified(TODAY + timedelta(days=300))
    scene.night(today=IN_A_YEAR)
    if not ended:
        scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL")

    with pytest.raises(ConfigurationError, match=f"today would be {TODAY}, but the last night was run for {IN_A_YEAR}"):
        refuse_earlier_date(scene.connection, TODAY)
    corrected = scene.night()
    after = [scene.night(), scene.night(today=TODAY + timedelta(days=1))]

    reviewed = [each.to_document()["mentors"]["reviewed"] for each in (corrected, *after)]
    # A run that died may still be writing for a day, so the runs of that day review everyone, too.
    assert reviewed == ([1, 0, 0] if ended else [1, 1, 1])
    assert scene.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(0,)]
