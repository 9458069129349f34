"""What every job needs: the database, the day, the ways to the portal and to people, and the request to stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from certjob.database import Connection
from certjob.errors import ConfigurationError
from certjob.mail.message import Channel
from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService  # httpx: 50 ms

RUN_SECONDS = 40 * 60.0
"""Time for the deliveries of a full run. The crontab ends the run after 55 minutes."""

DELIVER_SECONDS = 10 * 60.0
"""Time for the deliveries of any other command. The crontab ends `certjob deliver` after 14 minutes."""

Advance = Callable[[int], None]
"""Shows the number done in a phase."""


def show_nothing(_name: str, *, count: Callable[[], int] | None = None) -> Advance:
    """Begin a phase without showing it."""
    return lambda _done: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every job needs."""

    connection: Connection
    today: date
    stop: StopFlag
    make_portal: "Callable[[], HLFDynamicsSyncService] | None" = None
    """Returns the portal's client. None: CERTJOB_PORTAL_URL is not set."""
    channel: Channel | None = None
    """None: CERTJOB_NOTIFY_URL is not set, or ``mail_problem``."""
    mail_problem: ConfigurationError | None = None
    """The wrong settings because of which no mail can be sent."""
    templates_dir: Path | None = None
    app_url: str = ""
    """The address of the app, to which digests link."""
    operator_address: str = ""
    """The e-mail address of the operators, which digests name."""
    zone: tzinfo = UTC
    present_day: Callable[[], date] = lambda: date.min
    """Returns the present day. After midnight a run sends no show that was true only on the day before."""
    deadline_seconds: float = DELIVER_SECONDS
    phase: Callable[..., Advance] = show_nothing
    """Begins a phase, as ``show_nothing`` does. ``count`` returns the total."""
    run_id: UUID = field(default_factory=uuid4)
