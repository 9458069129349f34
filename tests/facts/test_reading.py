"""The reader of facts: a mentor as the rules get them is what stands in the tables."""

from datetime import UTC, date, datetime

from certjob.database import Connection
from certjob.domain.models import Certificate, Mentor, OpenPause, Organisation, Status
from certjob.facts import reading
from tests.support.facts import TODAY, Facts


def test_a_mentor_is_read_with_everything_that_a_decision_needs(connection: Connection, facts: Facts) -> None:
    """With locks or without; lifted pauses are left out, and so is whoever does not exist."""
    hlf = facts.organisation(thresholds=())
    lhl = facts.organisation("lhl", portal=None, thresholds=(30, -1), optional_kinds=["first_aid"])
    shown = facts.mentor(hlf, member_no="M1")
    left = facts.mentor(lhl, member_no="M2", left_at=datetime.now(UTC))
    revoked = facts.certificate(left, TODAY, kind="first_aid", revoked_at=datetime.now(UTC))
    pause = facts.pause(left, reason="leave")
    facts.pause(left)
    connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE reason = 'illness'")
    connection.execute("UPDATE mentors SET portal_visible = false WHERE id = %s", (left,))
    connection.execute("UPDATE certificates SET status = 'valid'")

    expected = [
        Mentor(
            id=left,
            member_no="M2",
            organisation=Organisation(
                id=lhl,
                slug="lhl",
                has_portal=False,
                reminder_thresholds=(30, -1),
                optional_kinds=frozenset({"first_aid"}),
            ),
            left=True,
            portal_visible=False,
            certificates=(
                Certificate(
                    id=revoked,
                    kind="first_aid",
                    issued_on=date(2024, 1, 1),
                    expires_on=TODAY,
                    revoked=True,
                    status=Status.VALID,
                ),
            ),
            open_pauses=(OpenPause(id=pause, reason="leave"),),
        ),
        Mentor(
            id=shown,
            member_no="M1",
            organisation=Organisation(
                id=hlf, slug="hlf", has_portal=True, reminder_thresholds=(), optional_kinds=frozenset()
            ),
            left=False,
            portal_visible=True,
            certificates=(),
            open_pauses=(),
        ),
    ]
    for lock in (False, True):
        with connection.transaction():
            read = reading.read(connection, [left, hlf, shown], lock=lock)
        assert (read.mentors, read.incomplete, read.broken) == (expected, [], {})
