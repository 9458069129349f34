"""The values of one mentor's story: what is stored, what the rules make of it, what comes next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from uuid import UUID

from certjob.domain.explanations import day_words
from certjob.domain.models import Mentor
from certjob.domain.projection import ComingNight
from certjob.reports.logged_reminders import LoggedReminder
from certjob.reports.open_pushes import OpenPush


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whom the story is about: one row of ``read_mentor_story``."""

    id: UUID
    member_no: str
    full_name: str | None
    email: str | None
    left_at: datetime | None
    contact_id: UUID | None
    wanted: bool | None
    """The last value wanted on the portal; None: unknown, whatever is wanted is pushed."""
    organisation_id: UUID
    slug: str
    organisation_name: str
    review_is_due: bool
    review_on: date | None
    """None: at once, or never."""
    now: datetime
    """By the database's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateNote:
    """What is known of a certificate beside the facts."""

    id: UUID
    revoked_at: datetime | None
    noted_on: date | None
    """Since which night it has the stored status; None: since certjob knows it, or longer than the audit is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """An open pause, or one that was lifted."""

    reason: str
    actor: str
    paused_at: datetime
    lifted_at: datetime | None
    lifted_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """What the portal confirmed last, and what it showed: one row of ``read_portal_story``."""

    confirmed: bool | None
    confirmed_at: datetime | None
    read_at: datetime | None
    """When the portal was last read; None: never."""
    was_shown: bool | None
    """Whether it showed the contact then; None: not read, or the mentor has no contact."""
    resolved_failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that will happen if no fact changes."""

    on: date
    at: datetime | None = None
    """A retry has a time; a night has a day."""
    kind: str
    """``status``, ``pause``, ``resume``, ``reminder``, ``show``, ``hide``, ``withdraw``: a night does it; ``push`` and
    ``mail``: a delivery that is queued already; ``guard``: why a night is kept from what is held."""
    text: str
    certificate_id: UUID | None = None
    threshold_days: int | None = None
    held: bool = False
    """The guards keep tonight's run from it; a person has to let it through."""

    @property
    def is_of_night(self) -> bool:
        """Whether a night does it; else any delivery, as soon as it is time."""
        return self.kind not in ("push", "mail")


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorHistory:
    """Everything that is told of one mentor."""

    today: date
    zone: tzinfo
    person: Person
    mentor: Mentor
    notes: Mapping[UUID, CertificateNote]
    pauses: Sequence[Pause]
    """Open ones first."""
    reminders: Sequence[LoggedReminder]
    portal: Portal
    push: OpenPush | None
    """What is still to be pushed."""
    nights: Sequence[ComingNight]
    """Those that do something; their reminders are those that the log does not have yet."""
    held: str | None
    """Why a night would apply nothing for the organisation."""
    held_reminders: str | None
    """Why a night would queue no reminders for it."""
    review_is_due: bool
    """A run today reviews the mentor: facts have changed, its day has come, or everybody is reviewed."""
    last_night: date | None
    """Of the last finished night over all organisations."""
    steps: Sequence[Step]
    """In the order of their days."""

    @property
    def next_steps(self) -> list[Step]:
        """What happens on the next day on which anything does."""
        return [step for step in self.steps if step.on == self.steps[0].on]

    def moment(self, at: datetime) -> str:
        """Return a moment as people of the programme read it."""
        local = at.astimezone(self.zone)
        return f"{day_words(local.date(), self.today)} {local:%H:%M}"

    def revoked_on(self, certificate_id: UUID) -> date | None:
        """Return the day on which a certificate was revoked, in the programme's zone."""
        at = self.notes[certificate_id].revoked_at
        return at.astimezone(self.zone).date() if at else None

    @property
    def is_stale(self) -> bool:
        """Whether a run today would change something that is stored."""
        return bool(self.nights) and self.nights[0].day == self.today
