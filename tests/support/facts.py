"""The builder of facts: it inserts rows as the app does, with defaults."""

import itertools
from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID, uuid4

from certjob.database import Connection

TODAY = date(2026, 3, 10)
"""The date of most tests."""


class Facts:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._numbers = itertools.count(1001)

    def insert(self, table: str, **values: object) -> str:
        """Insert a row; return its id, or an empty text for a table without one."""
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        statement = f"INSERT INTO {table} AS t ({names}) VALUES ({places}) RETURNING coalesce(to_jsonb(t) ->> 'id', '')"
        return str(self.rows(statement, *values.values())[0][0])

    def organisation(
        self,
        slug: str = "hlf",
        *,
        portal: str | None = "dynamics",
        thresholds: Sequence[int] = (60, 30, 14, 7, 1, -1),
        optional_kinds: Sequence[str] = (),
    ) -> UUID:
        row = {"slug": slug, "name": slug.upper(), "portal": portal, "contact_email": f"kontakt@{slug}.example"}
        lists = {"reminder_thresholds": list(thresholds), "optional_kinds": list(optional_kinds)}
        return UUID(self.insert("organisations", **row, **lists))

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
        portal_visible: bool | None = True,
    ) -> UUID:
        """Insert a mentor, with an address and a contact unless they are None.

        The portal is taken to show the mentor already. With ``portal_visible=None`` its state is unknown, as it is for
        every mentor whom an app or `certjob load` enters.
        """
        number = member_no or f"M{next(self._numbers)}"
        mentor_id = self.insert(
            "mentors",
            organisation_id=organisation_id,
            member_no=number,
            full_name=full_name,
            email=f"{number.lower()}@example.org" if email == "" else email,
            locale=locale,
            dynamics_contact_id=uuid4() if contact_id == "" else contact_id,
            left_at=left_at,
            portal_visible=portal_visible,
        )
        return UUID(mentor_id)

    def certificate(
        self,
        mentor_id: UUID,
        expires_on: date,
        *,
        kind: str = "likeperson",
        issued_on: date = date(2024, 1, 1),
        revoked_at: datetime | None = None,
    ) -> UUID:
        days = {"issued_on": issued_on, "expires_on": expires_on, "revoked_at": revoked_at}
        return UUID(self.insert("certificates", mentor_id=mentor_id, kind=kind, **days))

    def pause(self, mentor_id: UUID, *, reason: str = "illness", actor: str = "coordinator") -> UUID:
        return UUID(self.insert("mentor_pauses", mentor_id=mentor_id, reason=reason, actor=actor))

    def certified_mentor(self, organisation_id: UUID, expires_on: date, **mentor: object) -> UUID:
        """Insert a mentor with one certificate."""
        mentor_id = self.mentor(organisation_id, **mentor)  # type: ignore[arg-type]
        self.certificate(mentor_id, expires_on)
        return mentor_id

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.connection.execute(statement.encode(), parameters).fetchall()
