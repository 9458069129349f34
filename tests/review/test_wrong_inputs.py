"""Wrong inputs in an ordinary programme, with the limits of production."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from certjob import database
from tests.conftest import fresh_database
from tests.review.guarding import held, hidden, run
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, night
from tests.support.scene import Scene

PROGRAMME = f"""
    INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id, portal_visible)
    SELECT id, n, n || '@example.org', gen_random_uuid(), true FROM organisations, generate_series(101, 300) AS n;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
    SELECT id, 'course', last - 729, last
    FROM (SELECT id, '{TODAY}'::date + 4 * (member_no::int - 160) + 2 AS last FROM mentors) AS m
"""
"""The certificate of a mentor ends every fourth day; those of 59 have ended."""
VALID, ENDED = (f"WHERE expires_on {sign} '{TODAY}'" for sign in (">=", "<"))
EDIT = "UPDATE certificates SET"
ENTER = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT"
NEW_MENTORS = (
    "WITH m AS (INSERT INTO mentors (organisation_id, member_no, email) SELECT id, n, n || '@example.org'"
    " FROM organisations, generate_series(1, 40) AS n RETURNING id)"
)
WRONG_INPUTS = {
    "in the past": (f"{EDIT} expires_on = greatest(issued_on, '{TODAY}'::date - 9) {VALID}", "141 ended"),
    "next week": (f"{EDIT} expires_on = '{TODAY}'::date + 8 {VALID}", "139 ends soon"),
    "in 30 days": (f"{EDIT} expires_on = '{TODAY}'::date + 30 {VALID}", "133 ends soon"),
    "in 100 days": (f"{EDIT} expires_on = '{TODAY}'::date + 100 {VALID}", "116 ends earlier"),
    "a year early": (f"{EDIT} expires_on = expires_on - 365", "91 ended, 16 ends soon, 34 ends earlier"),
    "day and month swapped": (
        f"{EDIT} expires_on = to_date(to_char(expires_on, 'YYYYMMDD'), 'YYYYDDMM')"
        " WHERE extract(day FROM expires_on) <= 12",
        "6 ended, 3 ends soon, 15 ends earlier, 7 returns",
    ),
    "revoked": (f"{EDIT} revoked_at = now() {VALID}", "141 revoked"),
    "contact IDs of the next mentor": (
        "UPDATE mentors AS m SET dynamics_contact_id = next.dynamics_contact_id FROM mentors AS next"
        " WHERE next.member_no::int = 101 + mod(m.member_no::int - 100, 200)",
        "200 new contact",
    ),
    "new mentors with old certificates": (
        f"{NEW_MENTORS} {ENTER} id, 'x', '2025-01-01', '2026-04-01' FROM m",
        "40 reminder",
    ),
    "optional kind": (
        f"UPDATE organisations SET optional_kinds = '{{driver}}'; {ENTER} id, 'driver', '2025-01-01', '2026-04-01'"
        " FROM mentors",
        "200 reminder",
    ),
    "ended last days in the future": (f"{EDIT} expires_on = '2027-12-31' {ENDED}", "59 returns"),
    "old certificates added": (
        f"{ENTER} mentor_id, kind, '2025-09-01', '2027-08-31' FROM certificates {ENDED}",
        "59 returns",
    ),
    "all renewed today": (f"{ENTER} mentor_id, kind, '{TODAY}', '2028-03-09' FROM certificates {ENDED}", "59 returns"),
}


@pytest.fixture(scope="module")
def template(server_url: str, template: str) -> Iterator[str]:
    """The name of a database with the programme after its first run, which each test copies."""
    for url in fresh_database(server_url, template, "certjob_programme"):
        with database.connect(url) as connection:
            Facts(connection).organisation("hlf")
            connection.execute(PROGRAMME.encode())
            assert night(connection, deliver=False, allow=EVERYTHING).held == []
            name = connection.info.dbname
        yield name


@pytest.mark.parametrize(("statements", "effects"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_wrong_input_is_held_by_the_first_run(scene: Scene, statements: str, effects: str) -> None:
    scene.connection.execute(statements.encode())

    report = run(scene, today=TODAY + timedelta(days=1))

    number = sum(int(word) for word in effects.split() if word.isdigit())
    assert held(report) == [f"hlf: {number} mentors are held back ({effects})"]


@pytest.mark.parametrize(("days", "ended"), [(6, 0), (365, 91)])
def test_clock_ahead_is_held_if_many_certificates_end(scene: Scene, days: int, ended: int) -> None:
    report = run(scene, today=TODAY + timedelta(days=1 + days))

    assert held(report) == ([f"hlf: {ended} mentors are held back ({ended} ended)"] if ended else [])


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(f"DELETE FROM certificates {ENDED}", id="ended certificates deleted"),
        pytest.param("UPDATE organisations SET reminder_thresholds = '{600}'", id="threshold of 600 days"),
    ],
)
def test_wrong_input_that_changes_no_visibility_is_not_held(scene: Scene, statement: str) -> None:
    scene.run_sql(statement)

    report = run(scene, today=TODAY + timedelta(days=1))

    assert (report.held, len(hidden(scene))) == ([], 59)
