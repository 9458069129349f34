"""A certjob process that is altered: with shorter times, or frozen at a chosen point.

    with started("run", "--json", environment=…, folder=…, freeze_before=FIRST_CALL) as child:
        child.wait_until_frozen()
        ...                                # what the others do meanwhile
        child.signal(SIGCONT)

``tests.support.command_line.started`` runs the command in such a process: ``freeze_before`` or
``freeze_after`` a method; in seconds ``portal_lease``, ``mail_lease``, ``call`` (the longest a call to the portal
takes), ``round`` (how long its repeats may begin) and ``message`` (the longest each half of a message takes, before and
after it is handed over); ``attempts`` (calls of one round) and ``at_once`` (pushes); ``grace``, how long what is being
done may go on after a signal; ``ignored``, a signal, as under `nohup`; ``loop_fault`` and ``mail_timeout``: see
``tests.chaos.event_loop``. The times of a lease are minutes; a test that waits for them shortens all that belong
together. A freeze is a SIGSTOP that the process sends to itself, the first time it comes to that point.
"""

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

FIRST_CALL = "certjob.portal.hlf_dynamics:HLFDynamicsSyncService.update_portal_visibility"
"""Where the network begins: the lease was looked at for the last time."""
FIRST_MESSAGE = "certjob.mail.channels.maildir:MaildirChannel.send"
PORTAL_CLAIM = "certjob.portal.sync:PortalSyncService.claim"
MAIL_CLAIM = "certjob.mail.reminder_mail:ReminderMail.claim"


def _plant_freeze(name: str, *, before: bool) -> None:
    module, _, path = name.partition(":")
    owner, method = path.split(".")
    room = getattr(import_module(module), owner)
    original = getattr(room, method)
    visits = itertools.count()

    def freezing(*arguments: Any, **named: Any) -> Any:
        is_first = next(visits) == 0
        if is_first and before:
            _freeze()
        result = original(*arguments, **named)
        if is_first and not before:  # of what is asynchronous nothing has happened yet
            _freeze()
        return result

    setattr(room, method, freezing)


def _freeze() -> None:
    # To this thread: sent to the process, another thread might take it, and this one would run on for a while.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _set_defaults(function: Callable[..., Any], **values: object) -> None:
    defaults = function.__kwdefaults__
    assert defaults is not None
    assert defaults.keys() >= values.keys()
    defaults.update(values)


def _set_everywhere(name: str, value: object) -> None:
    """Set it in every room that has imported it by name; those that come later find it where it is defined."""
    rooms = [room for key, room in sys.modules.items() if key.startswith("certjob.") and hasattr(room, name)]
    assert rooms, name
    for room in rooms:
        setattr(room, name, value)


def _shorten_portal(*, lease: float, call: float, repeats: float) -> None:
    from certjob.jobs import deliveries, resync, runs  # noqa: F401 - all that know these times are to be loaded
    from certjob.portal import push, sync

    _set_defaults(sync.PortalSyncService.__init__, lease_seconds=lease)
    _set_everywhere("CALL_DEADLINE_SECONDS", call)
    _set_defaults(deliveries.Delivery.__init__, policy=replace(push.PORTAL_POLICY, deadline_seconds=repeats))


def _set_pushes(*, attempts: int, at_once: int) -> None:
    from certjob.jobs import deliveries
    from certjob.portal import push

    policy = replace(push.PORTAL_POLICY, max_attempts=attempts)
    _set_defaults(deliveries.Delivery.__init__, policy=policy, concurrency=at_once)


def _shorten_mail(*, lease: float, message: float) -> None:
    from certjob.mail.channels.maildir import MaildirChannel
    from certjob.mail.channels.smtp import SmtpChannel
    from certjob.mail.reminder_mail import ReminderMail

    ReminderMail.lease_seconds = lease
    _set_everywhere("QUIT_SECONDS", 0.0)
    half = message / 2
    SmtpChannel.connect_seconds = SmtpChannel.envelope_seconds = half
    SmtpChannel.answer_seconds = message
    MaildirChannel.worst_case_seconds = message


def run_altered(alterations: Mapping[str, Any]) -> None:
    """Run the command of ``sys.argv``, altered."""
    from certjob.cli.entry import main

    if "portal_lease" in alterations:
        _shorten_portal(lease=alterations["portal_lease"], call=alterations["call"], repeats=alterations["round"])
    if "mail_lease" in alterations:
        _shorten_mail(lease=alterations["mail_lease"], message=alterations["message"])
    if "attempts" in alterations:
        _set_pushes(attempts=alterations["attempts"], at_once=alterations["at_once"])
    if "grace" in alterations:
        _set_everywhere("GRACE_SECONDS", alterations["grace"])
    if "ignored" in alterations:
        signal.signal(alterations["ignored"], signal.SIG_IGN)
    if "loop_fault" in alterations:
        from tests.chaos.event_loop import plant_fault

        plant_fault(**alterations["loop_fault"])
    if "mail_timeout" in alterations:
        from tests.chaos.event_loop import shorten_timeouts

        shorten_timeouts(alterations["mail_timeout"])
    for moment in alterations.keys() & {"freeze_before", "freeze_after"}:
        _plant_freeze(alterations[moment], before=moment == "freeze_before")
    main()
