"""Leases between real processes: no process acts on an expired lease, and none starts a call that does not fit."""

import json
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import Certjob
from tests.support.command_line import Child, started, today
from tests.support.facts import Facts
from tests.support.nights import expire_leases, review
from tests.support.portal_answers import Behaviour, confirm, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

Start = Callable[..., AbstractContextManager[Child]]

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
FIRST_CALL = "certjob.portal.hlf_dynamics:HLFDynamicsSyncService.update_portal_visibility"
FIRST_MESSAGE = "certjob.mail.channels.maildir:MaildirChannel.send"
PORTAL_CLAIM = "certjob.portal.sync:PortalSyncService.claim"
MAIL_CLAIM = "certjob.mail.steps:claim"
SHORT = {"portal_lease": 1.0, "call": 0.2, "round": 0.2}
SHORT_MAIL = {"mail_lease": 1.0, "message": 0.2}
STOOD_STILL = "a push can take longer than its lease, or this process stood still"
LOST = "certjob run: 1 portal push lost its lease\n"
LOST_MAIL = "certjob deliver: 1 reminder lost its lease\n"


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Start the command in the background, with the alterations of ``tests.support.processes``."""
    return lambda *arguments, **altered: started(*arguments, environment=environment, folder=tmp_path, **altered)


@pytest.fixture
def expired(facts: Facts) -> UUID:
    """A mentor whom the first run hides and mails."""
    ended = today() - timedelta(days=5)
    return facts.certified_mentor(facts.organisation(), ended, member_no="M1042", contact_id=CONTACT)


def let_lease_expire(facts: Facts, table: str, *, really: bool) -> None:
    """Let the leases expire; ``really``: wait, because a process measures its own lease."""
    if not really:
        expire_leases(facts, table)
    open_leases = f"SELECT count(*) FROM {table} WHERE claim_token IS NOT NULL AND next_attempt_at > now()"
    until(lambda: facts.rows(open_leases) == [(0,)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where a process stops, and the result."""

    in_call: Behaviour | None = None
    """Stop during the call, which the portal answers so; otherwise ``altered`` stops the process."""
    altered: dict[str, Any] = field(default_factory=dict)
    arrived: list[bool]
    """The values that the portal received."""
    shown: bool
    """The last value that it applied."""
    said: str = LOST


STOPS = {
    "in its call, applied at once": Stop(in_call=confirm, arrived=[False, True], shown=True),
    "in its call, applied late": Stop(in_call=ok(), arrived=[False, True], shown=False),
    "just before its call": Stop(altered={"freeze_before": FIRST_CALL}, arrived=[True, False], shown=False),
    "after its claim": Stop(
        altered=SHORT | {"freeze_after": PORTAL_CLAIM}, arrived=[True], shown=True, said=STOOD_STILL
    ),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.proc
def test_process_that_stood_still_overwrites_no_newer_value(
    facts: Facts, here: Certjob, start: Start, expired: UUID, portal: PortalServer, stop: Stop
) -> None:
    """Only a process that stopped after its last check of the lease sends an old value, as docs/rules.md says."""
    if stop.in_call:
        portal.then(hang(stop.in_call, applied=True))

    with start("run", "--json", **stop.altered) as child:
        if stop.in_call:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            child.signal(signal.SIGSTOP)
        child.wait_until_frozen()
        let_lease_expire(facts, "portal_sync_events", really="portal_lease" in stop.altered)
        facts.certificate(expired, today() + timedelta(days=700), issued_on=today())
        assert here("run").returncode == 0
        assert portal.visible == {CONTACT: True}
        rows = facts.rows("SELECT to_jsonb(e) FROM portal_sync_events AS e ORDER BY id")
        portal.release()
        child.signal(signal.SIGCONT)
        ended = child.finish()

    is_lost = int(stop.said == LOST)
    assert ended.returncode == 3
    assert ended.stderr == LOST if is_lost else stop.said in ended.stderr
    counts = json.loads(ended.stdout)["portal"]
    assert (counts["lost"], counts["failed"], counts["delivered"]) == (is_lost, 0, 0)
    assert [call.visible for call in portal.requests] == stop.arrived
    assert facts.rows("SELECT to_jsonb(e) FROM portal_sync_events AS e ORDER BY id") == rows
    assert facts.rows("SELECT status, visible, version FROM portal_sync_events") == [("delivered", True, 2)]
    assert portal.visible == {CONTACT: stop.shown}
    if not stop.shown:  # reconcile finds it
        assert here("reconcile").returncode == 0
        assert portal.visible == {CONTACT: True}


@pytest.mark.parametrize(
    ("altered", "said", "copies"),
    [
        pytest.param({"freeze_before": FIRST_MESSAGE}, LOST_MAIL, 2, id="just before its mail"),
        pytest.param(SHORT_MAIL | {"freeze_after": MAIL_CLAIM}, "", 1, id="after its claim"),
    ],
)
@pytest.mark.proc
def test_process_that_stood_still_sends_a_copy_only_after_its_last_check(
    facts: Facts, here: Certjob, start: Start, tmp_path: Path, altered: dict[str, Any], said: str, copies: int
) -> None:
    """Both mails have one Message-ID, and the other process's mail says that it may be a repeat."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=10), locale="en")
    review(facts.connection, today())

    with start("deliver", "--json", **altered) as child:
        child.wait_until_frozen()
        let_lease_expire(facts, "cert_notification_log", really="mail_lease" in altered)
        assert here("deliver").returncode == 0
        rows = facts.rows("SELECT * FROM cert_notification_log")
        child.signal(signal.SIGCONT)
        ended = child.finish()

    assert (ended.returncode, ended.stderr) == (3 if said else 0, said)
    counts = json.loads(ended.stdout)["reminders"]
    assert (counts["lost"], counts["failed"], counts["sent"]) == (copies - 1, 0, 0)
    assert facts.rows("SELECT * FROM cert_notification_log") == rows
    assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [("sent", 2, True)]
    mails = list(Maildir(tmp_path / "mail"))
    repeats = ["may have received this reminder before" in mail.as_string() for mail in mails]
    assert sorted(repeats) == [False, True][2 - copies :]
    assert len({mail["Message-ID"] for mail in mails}) == 1
