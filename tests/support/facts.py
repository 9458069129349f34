"""Factories that write facts into a test's database, with defaults for everything a test does not care about."""

import itertools
from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID, uuid4

from certjob.database import Connection

TODAY = date(2026, 3, 10)
"""The day on which most tests happen."""


class Facts:
    """Writes facts as the app would: plain inserts of fact columns."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._numbers = itertools.count(1001)

    def organisation(
        self,
        slug: str = "hlf",
        *,
        portal: str | None = "dynamics",
        thresholds: Sequence[int] = (60, 30, 14, 7, 1, -1),
        optional_kinds: Sequence[str] = (),
    ) -> UUID:
        row = self.connection.execute(
            "INSERT INTO organisations (slug, name, portal, reminder_thresholds, optional_kinds, contact_email)"
            " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
            (slug, slug.upper(), portal, list(thresholds), list(optional_kinds), f"kontakt@{slug}.example"),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def mentor(
        self,
        organisation_id: UUID,
        *,
        member_no: str | None = None,
        full_name: str | None = "Kari Nordmann",
        email: str | None = "",
        locale: str = "nb",
        contact_id: UUID | str | None = "",
        left_at: datetime | None = None,
    ) -> UUID:
        """A mentor; ``email`` and ``contact_id`` are made up unless given (None = none)."""
        number = member_no or f"M{next(self._numbers)}"
        row = self.connection.execute(
            "INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
            (
                organisation_id,
                number,
                full_name,
                f"{number.lower()}@example.org" if email == "" else email,
                locale,
                uuid4() if contact_id == "" else contact_id,
                left_at,
            ),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def certificate(
        self,
        mentor_id: UUID,
        expires_on: date,
        *,
        kind: str = "likeperson",
        issued_on: date = date(2024, 1, 1),
        revoked_at: datetime | None = None,
    ) -> UUID:
        row = self.connection.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, revoked_at)"
            " VALUES (%s, %s, %s, %s, %s) RETURNING id",
            (mentor_id, kind, issued_on, expires_on, revoked_at),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def pause(self, mentor_id: UUID, *, reason: str = "illness", actor: str = "coordinator") -> UUID:
        row = self.connection.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, %s, %s) RETURNING id",
            (mentor_id, reason, actor),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def certified_mentor(self, organisation_id: UUID, expires_on: date, **mentor: object) -> UUID:
        """A mentor with one certificate."""
        mentor_id = self.mentor(organisation_id, **mentor)  # type: ignore[arg-type]
        self.certificate(mentor_id, expires_on)
        return mentor_id

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """What the database holds now."""
        return self.connection.execute(statement.encode(), parameters).fetchall()
