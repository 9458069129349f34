"""A certjob process with alterations: shorter times, or a stop at a chosen method.

``tests.support.command_line.started`` takes them as named arguments:

* ``freeze_before`` and ``freeze_after``: stop the process with SIGSTOP when it first calls this method or function;
* ``portal_lease``, ``call`` and ``round``, and ``mail_lease`` and ``message``: seconds of a lease and of the calls that
  must fit into it; a message is sent in two halves;
* ``attempts`` and ``at_once``: calls of a push, and pushes at the same time;
* ``grace``: seconds for calls in flight after a signal.
"""

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from certjob.cli import entry
from certjob.mail.channels.maildir import MaildirChannel
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.reminder_mail import ReminderMail
from certjob.outbox.retry import RetryPolicy
from certjob.portal import push, stage, sync


def run_altered(alterations: Mapping[str, Any]) -> None:
    """Run the command of ``sys.argv`` with these alterations."""
    if "portal_lease" in alterations:
        _set_defaults(sync.PortalSyncService.__init__, lease_seconds=alterations["portal_lease"])
        _set_everywhere("CALL_DEADLINE_SECONDS", alterations["call"])
        policy = replace(push.PORTAL_POLICY, deadline_seconds=alterations["round"])
        _set_policy(policy)
    if "mail_lease" in alterations:
        ReminderMail.lease_seconds = alterations["mail_lease"]
        _set_everywhere("QUIT_SECONDS", 0.0)
        SmtpChannel.connect_seconds = SmtpChannel.envelope_seconds = alterations["message"] / 2
        SmtpChannel.answer_seconds = MaildirChannel.worst_case_seconds = alterations["message"]
    if "attempts" in alterations:
        policy = replace(push.PORTAL_POLICY, max_attempts=alterations["attempts"])
        _set_policy(policy)
        _set_defaults(stage.deliver_pushes, concurrency=alterations["at_once"])
    if "grace" in alterations:
        _set_everywhere("GRACE_SECONDS", alterations["grace"])
    for moment in alterations.keys() & {"freeze_before", "freeze_after"}:
        _plant_freeze(alterations[moment], before=moment == "freeze_before")
    entry.main()


def _set_defaults(function: Callable[..., Any], **values: object) -> None:
    defaults = function.__kwdefaults__
    assert defaults is not None
    assert defaults.keys() >= values.keys()
    defaults.update(values)


def _set_policy(policy: RetryPolicy) -> None:
    """Set the calls of a push, in a stage and in a resync."""
    for function in (stage.deliver_pushes, push.push_once):
        _set_defaults(function, policy=policy)


def _set_everywhere(name: str, value: object) -> None:
    """Set a constant in every module that has imported it."""
    modules = [module for key, module in sys.modules.items() if key.startswith("certjob.") and hasattr(module, name)]
    assert modules, name
    for module in modules:
        setattr(module, name, value)


def _plant_freeze(name: str, *, before: bool) -> None:
    module, _, path = name.partition(":")
    *owners, function = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, calls = getattr(owner, function), itertools.count()

    def freeze_once(*arguments: Any, **named: Any) -> Any:
        is_first = next(calls) == 0
        if is_first and before:
            _freeze()
        result = original(*arguments, **named)
        if is_first and not before:  # an asynchronous method has not begun yet
            _freeze()
        return result

    setattr(owner, function, freeze_once)


def _freeze() -> None:
    # A signal to the process may reach another thread, and this one would go on for a while.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
