"""`certjob check`: test everything that a nightly run depends on, even after a failed test.

It only reads the database and the first page of the portal's contacts. It sends no message unless asked.
"""

import difflib
import os
import ssl
from collections.abc import Generator, Iterator, Mapping
from datetime import date, timedelta
from uuid import uuid4

import psycopg

from certjob import database
from certjob.database import embedded
from certjob.database.connection_errors import explain_late_rejection
from certjob.domain.explanations import number
from certjob.errors import CertjobError, ChannelDownError, ConfigurationError, TemplateError, TransientPortalError
from certjob.mail.channels.notify import open_channel, send_alone
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import Templates
from certjob.outbox.calls import run_alone
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService, SecretUntil, VisiblePage
from certjob.reports.check.findings import Finding, fail, failed_with, ok, skip, warn
from certjob.reports.check.in_database import check_database
from certjob.settings import EMBEDDED, Settings

PORTAL_SECONDS = 30.0
"""An Edge Function needs some seconds for its first answer of the day."""

_OF_PORTAL = {"CERTJOB_PORTAL_URL", "CERTJOB_PORTAL_KEY"}
_OF_MAIL = {"CERTJOB_NOTIFY_URL", "CERTJOB_NOTIFY_PASSWORD", "CERTJOB_MAIL_FROM"}
_WRONG = "its settings are wrong"
_GET_RIGHTS = "as the tables' owner, grant certjob_worker to this user, and run `certjob db migrate`"


def check_everything(
    settings: Settings, *, problems: Mapping[str, ConfigurationError], test_to: str | None = None
) -> Iterator[Finding]:
    """Yield the findings.

    ``problems`` has the error of each wrong setting by variable; ``settings`` lacks these values. ``test_to`` is a
    valid address that receives a test message.
    """
    for problem in problems.values():
        yield fail("settings", problem.message, next_step=problem.next_step or "correct it; see docs/settings.md")
    yield from _check_variable_names(settings)
    yield ok("time zone", f"{settings.time_zone}, where today is {settings.today}")
    with_portal = yield from _check_database(settings)
    if _OF_PORTAL & problems.keys():
        yield skip("portal", _WRONG)
    else:
        yield from _check_portal(settings, with_portal)
    yield skip("mail", _WRONG) if _OF_MAIL & problems.keys() else _check_mail(settings)
    yield from _check_templates(settings)
    if settings.operator_address is not None:
        yield ok("operators", "digests name their address")
    else:
        step = "set CERTJOB_OPERATOR_ADDRESS to the address of the people who run certjob"
        yield warn("operators", "digests tell coordinators to write to them, without an address", next_step=step)
    if settings.ping_url is not None:
        yield ok("ping", "its address is well-formed; only `certjob run` calls it")
    else:
        step = "set CERTJOB_PING_URL; until then, a missed run goes unnoticed"
        yield warn("monitoring", "no external monitor is configured", next_step=step)
    if test_to is not None:
        yield skip("test message", _WRONG) if _OF_MAIL & problems.keys() else _send_test(settings, test_to)
    right = [variable for variable in _variables(settings) if variable not in problems]
    given = [variable for variable in right if _variables(settings)[variable] in settings.model_fields_set]
    yield ok("settings", f"set: {', '.join(given) or 'none'}")
    yield ok("settings", f"not set: {', '.join(each for each in right if each not in given) or 'none'}")


def _variables(settings: Settings) -> dict[str, str]:
    """Return the names of the fields by variable."""
    return {f"CERTJOB_{name.upper()}": name for name in type(settings).model_fields}


def _check_variable_names(settings: Settings) -> Iterator[Finding]:
    known = _variables(settings)
    for variable in sorted(set(os.environ) - {*known, "CERTJOB_ENV_FILE"}):
        if variable.startswith("CERTJOB_"):
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.7)
            step = f"did you mean {near[0]}?" if near else "remove it; see docs/settings.md"
            yield warn("settings", f"{variable} is not a setting of certjob", next_step=step)


def _check_database(settings: Settings) -> Generator[Finding, None, list[str] | None]:
    """Return the organisations with a portal, or None if they are unknown."""
    url = settings.database_url.get_secret_value()
    if not url:
        yield skip("database", "CERTJOB_DATABASE_URL is not set")
    elif url == EMBEDDED and not embedded.data_directory().exists():
        yield fail("database", "the embedded database does not exist yet", next_step="run `certjob db migrate`")
    else:
        try:
            with embedded.database_url(url) as libpq_url, database.connect(libpq_url) as connection:
                return (yield from check_database(connection, today=settings.today, zone=settings.zone))
        except CertjobError as error:
            yield failed_with("database", error)
        except psycopg.Error as error:
            rejection = explain_late_rejection(error) if isinstance(error, psycopg.OperationalError) else None
            said = " ".join((error.diag.message_primary or str(error)).split())
            step = "see whether another session holds a table for long, and the server's log"
            if rejection is not None:
                yield failed_with("database", rejection)
            elif isinstance(error, psycopg.errors.InsufficientPrivilege):
                yield fail("database", f"the database user lacks a right ({said})", next_step=_GET_RIGHTS)
            else:
                yield fail("database", f"a query failed ({said})", next_step=step, exit_code=1)
    return None


def _check_portal(settings: Settings, with_portal: list[str] | None) -> Iterator[Finding]:
    """Read the first page of visible contacts, which needs the same settings and rights as a push."""
    if settings.portal_url is None or settings.portal_key is None:
        if with_portal is None:
            yield skip("portal", "CERTJOB_PORTAL_URL is not set, and it is unknown whether an organisation needs it")
        elif with_portal:
            message = f"CERTJOB_PORTAL_URL is not set, so pushes stay queued for {', '.join(with_portal)}"
            step = f"set it and CERTJOB_PORTAL_KEY, or `certjob organisation set {with_portal[0]} --portal none`"
            yield warn("portal", message, next_step=step)
        else:
            yield ok("portal", "CERTJOB_PORTAL_URL is not set, and no organisation has a portal")
        return
    try:
        page = run_alone(_read_portal(settings.portal_url, settings.portal_key.get_secret_value()))
    except TransientPortalError as error:
        if error.status is not None and error.status < 300:
            step = "check that CERTJOB_PORTAL_URL is the function's own address"
            yield fail("portal", "the answer did not come from certjob's function", next_step=step)
        else:
            step = "try `certjob check` again; if the error remains, read the function's log"
            yield fail("portal", str(error), next_step=step, exit_code=1)
    except CertjobError as error:
        yield failed_with("portal", error, exit_code=2)
    else:
        contacts = number(len(page.visible_until), "visible contact")
        yield ok("portal", f"the function accepted the key; its first page has {contacts}")
        why = "only a run of certjob hides mentors; DYNAMICS_VISIBLE_UNTIL_FIELD is not set (docs/edge-function.md)"
        alone = "the portal gets the last day of each mentor, and can hide them without certjob"
        yield ok("hiding on time", alone if page.dates else why)
        yield from _check_secret(page.secret_until, today=settings.today)


def _check_secret(until: SecretUntil, *, today: date) -> Iterator[Finding]:
    """Warn 30 days before the last day of the function's client secret, as an alert does."""
    if until is None:
        yield ok("client secret", "its last day is unknown; AZURE_CLIENT_SECRET_UNTIL of the function is not set")
    elif until == "unusable":
        step = "set it to a day such as 2027-03-10"
        yield warn("client secret", "AZURE_CLIENT_SECRET_UNTIL of the function is not a day", next_step=step)
    elif until - timedelta(days=30) <= today:
        step = "create a second one: docs/edge-function.md, Changing the keys without a gap"
        yield warn("client secret", f"its last day is {until}", next_step=step)
    else:
        yield ok("client secret", f"its last day is {until}")


async def _read_portal(url: str, key: str) -> VisiblePage:
    async with HLFDynamicsSyncService(url, key, deadline_seconds=PORTAL_SECONDS) as service:
        return await service.read_page()


def _check_mail(settings: Settings) -> Finding:
    try:
        channel = open_channel(settings)
        if channel is None:
            return warn("mail", "CERTJOB_NOTIFY_URL is not set, so reminders stay queued", next_step="set it")
        return ok("mail", run_alone(channel.probe()))
    except ConfigurationError as error:
        return failed_with("mail", error)
    except ChannelDownError as error:
        out_of_reach = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ssl.SSLError)
        return failed_with("mail", error, exit_code=1 if out_of_reach else 2)


def _check_templates(settings: Settings) -> Iterator[Finding]:
    if settings.templates_dir is None:
        yield ok("templates", "certjob's own")
        return
    try:
        problems = list(Templates(settings.templates_dir).find_errors())
    except TemplateError as error:
        yield failed_with("templates", error)
        return
    for problem in problems:
        message = f"{problem.message}; certjob sends its own text instead"
        yield fail("templates", message, next_step=problem.next_step or "correct it")
    if not problems:
        yield ok("templates", "your own, without an error in their syntax; `certjob preview` shows a message")


def _send_test(settings: Settings, to: str) -> Finding:
    text = "This is a test by `certjob check --send-test`. If you read it, certjob's messages can reach you.\n"
    message = OutgoingMessage(
        to=to,
        subject="certjob: test",
        text=text,
        html=f'<!doctype html><html lang="en"><body><p>{text}</p></body></html>',
        idempotency_key=f"test-{uuid4().hex}",
        locale="en",
        kind="test",
        repeat=False,
    )
    try:
        channel = open_channel(settings)
        if channel is None:
            step = "set it, or leave out --send-test"
            return fail("test message", "CERTJOB_NOTIFY_URL is not set", next_step=step)
        send_alone(channel, message)
    except CertjobError as error:
        return failed_with("test message", error, exit_code=2)
    return ok("test message", "handed over; check that it arrives, and not as spam")
