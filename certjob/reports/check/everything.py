"""`certjob check`: everything that a nightly run depends on, each checked even if an earlier check failed.

It changes nothing: it reads the database and the portal's first page of visible contacts, and goes as far with the mail
server as is possible without sending a message.
"""

import difflib
import html
import os
import ssl
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import psycopg

from certjob import database
from certjob.database import embedded
from certjob.database.connection_errors import explain_late_refusal
from certjob.errors import CertjobError, ChannelDownError, ConfigurationError, TemplateError, TransientPortalError
from certjob.mail.channels.notify import open_channel, send_alone
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.checking import check_templates
from certjob.outbox.calls import run_alone
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService, VisiblePage
from certjob.reports.check.findings import Finding, fail, failed_with, ok, skip, warn
from certjob.reports.check.in_database import check_database
from certjob.settings import EMBEDDED, Settings

PORTAL_SECONDS = 30.0
"""A function that has slept all day takes a while to wake up."""

_WRONG = "its settings are wrong"
_OF_MAIL = {"CERTJOB_NOTIFY_URL", "CERTJOB_NOTIFY_PASSWORD", "CERTJOB_MAIL_FROM"}


def check_everything(
    settings: Settings,
    *,
    problems: Mapping[str, ConfigurationError],
    test_to: str | None = None,
) -> Iterator[Finding]:
    """Yield what was found, in the order in which one would look.

    ``problems`` are the errors of settings that are wrong, by variable; ``settings`` goes without those.
    ``test_to`` is a valid address that gets a test message.
    """
    for problem in problems.values():
        yield fail("settings", problem.message, next_step=problem.next_step or "correct it; see docs/settings.md")
    yield from _check_variable_names(settings)
    yield ok("time zone", f"{settings.time_zone}, where today is {settings.today}")
    organisations = yield from _check_database(settings)
    yield from _check_portal(settings, problems=problems, organisations=organisations)
    yield _check_mail(settings, problems=problems)
    yield from _check_templates(settings.templates_dir)
    yield from _check_monitoring(settings)
    if test_to is not None:
        yield _send_test(settings, problems=problems, to=test_to)
    yield from _list_settings(settings, problems=problems)


def _check_variable_names(settings: Settings) -> Iterator[Finding]:
    names = [f"CERTJOB_{name.upper()}" for name in type(settings).model_fields]
    for variable in sorted(set(os.environ) - {*names, "CERTJOB_ENV_FILE"}):
        if variable.startswith("CERTJOB_"):
            near = difflib.get_close_matches(variable, names, n=1, cutoff=0.7)
            step = f"did you mean {near[0]}?" if near else "remove it; see docs/settings.md"
            yield warn("settings", f"{variable} is not a setting of certjob", next_step=step)


def _list_settings(settings: Settings, *, problems: Mapping[str, ConfigurationError]) -> Iterator[Finding]:
    names = {f"CERTJOB_{name.upper()}": name for name in type(settings).model_fields}
    right = [variable for variable in names if variable not in problems]
    given = [variable for variable in right if names[variable] in settings.model_fields_set]
    yield ok("settings", f"set: {', '.join(given) or 'none'}")
    others = [variable for variable in right if variable not in given]
    yield ok("settings", f"not set: {', '.join(others) or 'none'}")


def _check_database(settings: Settings) -> Generator[Finding, None, dict[str, bool] | None]:
    """Yield the findings; return the organisations and whether they have a portal, None if that is not known."""
    url = settings.database_url.get_secret_value()
    if not url:
        yield skip("database", "CERTJOB_DATABASE_URL is not set")
        return None
    if url == EMBEDDED and not embedded.data_directory().exists():
        yield fail("database", "there is no embedded database yet", next_step="run `certjob db migrate`")
        return None
    try:
        with embedded.database_url(url) as libpq_url, database.connect(libpq_url) as connection:
            return (
                yield from check_database(
                    connection, today=settings.today, zone=settings.zone, mail_hours=settings.mail_hours
                )
            )
    except CertjobError as error:
        yield failed_with("database", error)
    except psycopg.Error as error:
        yield _unanswered(error)
    return None


def _unanswered(error: psycopg.Error) -> Finding:
    refusal = explain_late_refusal(error) if isinstance(error, psycopg.OperationalError) else None
    if refusal is not None:
        return failed_with("database", refusal)
    said = " ".join((error.diag.message_primary or str(error)).split())
    step = "see whether another session holds a table for long, and the server's log"
    return fail("database", f"it did not answer a question ({said})", next_step=step, exit_code=1)


def _check_portal(
    settings: Settings, *, problems: Mapping[str, ConfigurationError], organisations: dict[str, bool] | None
) -> Iterator[Finding]:
    """Read the first page of what is visible: that needs all that a push needs, and what `certjob reconcile` does."""
    if {"CERTJOB_PORTAL_URL", "CERTJOB_PORTAL_KEY"} & problems.keys():
        yield skip("portal", _WRONG)
        return
    if settings.portal_url is None or settings.portal_key is None:
        yield _check_unset_portal(organisations)
        return
    try:
        page = run_alone(_read_portal(settings.portal_url, settings.portal_key.get_secret_value()))
    except TransientPortalError as error:
        if error.status is not None and error.status < 300:
            step = "check that CERTJOB_PORTAL_URL is the function's own address"
            yield fail("portal", "something answered that is not the function", next_step=step)
            return
        step = "try `certjob check` again; see the function's log if it stays so"
        yield fail("portal", str(error), next_step=step, exit_code=1)
    except CertjobError as error:
        yield failed_with("portal", error, exit_code=2)
    else:
        number = len(page.visible_until)
        contacts = "1 contact is" if number == 1 else f"{number:,} contacts are"
        yield ok("portal", f"the function took the key and lists what is visible; {contacts} on the first page")
        if page.dates:
            yield ok("hiding on time", "the portal gets the last day of each mentor, and can hide them without certjob")
        else:
            why = "only a run of certjob hides mentors; DYNAMICS_VISIBLE_UNTIL_FIELD is not set (docs/edge-function.md)"
            yield ok("hiding on time", why)


async def _read_portal(url: str, key: str) -> VisiblePage:
    async with HLFDynamicsSyncService(url, key, deadline_seconds=PORTAL_SECONDS) as service:
        return await service.read_first_page()


def _check_unset_portal(organisations: dict[str, bool] | None) -> Finding:
    if organisations is None:
        return skip("portal", "CERTJOB_PORTAL_URL is not set, and the database did not tell whether it is needed")
    with_portal = [slug for slug, has_portal in organisations.items() if has_portal]
    if not with_portal:
        return ok("portal", "CERTJOB_PORTAL_URL is not set, and no organisation has a portal")
    first, *others = with_portal
    who = f"{first} has a portal" if not others else f"{first} and {len(others):,} more have a portal"
    step = f"set it and CERTJOB_PORTAL_KEY, or `certjob organisation set {first} --portal none`"
    return warn("portal", f"CERTJOB_PORTAL_URL is not set, but {who}: pushes stay queued", next_step=step)


def _check_mail(settings: Settings, *, problems: Mapping[str, ConfigurationError]) -> Finding:
    if _OF_MAIL & problems.keys():
        return skip("mail", _WRONG)
    if settings.notify_url is None:
        return warn("mail", "CERTJOB_NOTIFY_URL is not set, so reminders stay queued", next_step="set it")
    try:
        channel = open_channel(settings)
        assert channel is not None  # noqa: S101 - it has its URL
        return ok("mail", run_alone(channel.probe()))
    except ConfigurationError as error:
        return failed_with("mail", error)
    except ChannelDownError as error:
        out_of_reach = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ssl.SSLError)
        return failed_with("mail", error, exit_code=1 if out_of_reach else 2)


def _check_templates(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        yield ok("templates", "certjob's own")
        return
    try:
        problems = check_templates(folder)
    except TemplateError as error:
        yield failed_with("templates", error)
        return
    for problem in problems:
        message = f"{problem.message}; certjob sends its own text instead"
        yield fail("templates", message, next_step=problem.next_step or "correct it")
    if not problems:
        yield ok("templates", "your own, rendered in every language and situation")


def _send_test(settings: Settings, *, problems: Mapping[str, ConfigurationError], to: str) -> Finding:
    if _OF_MAIL & problems.keys():
        return skip("test message", _WRONG)
    try:
        channel = open_channel(settings)
        if channel is None:
            message = "CERTJOB_NOTIFY_URL is not set, so nothing can be sent"
            return fail("test message", message, next_step="set it, or leave out --send-test")
        send_alone(channel, _test_message(to))
    except CertjobError as error:
        return failed_with("test message", error, exit_code=2)
    return ok("test message", "handed over; look whether it arrives, and not as spam")


def _test_message(to: str) -> OutgoingMessage:
    text = "This is a test by `certjob check --send-test`. If you read it, certjob's messages can reach you.\n"
    return OutgoingMessage(
        to=to,
        subject="certjob: test",
        text=text,
        html=f'<!doctype html><html lang="en"><body><p>{html.escape(text)}</p></body></html>',
        idempotency_key=f"test-{uuid4().hex}",
        locale="en",
        kind="test",
        repeat=False,
    )


def _check_monitoring(settings: Settings) -> Iterator[Finding]:
    """Look at the ways to tell others; no ping is sent, since it would say that a night had run."""
    if settings.ping_url is not None:
        yield ok("ping", "its address has the right shape; only `certjob run` calls it")
    else:
        step = "set CERTJOB_PING_URL; until then, a missed run goes unnoticed"
        yield warn("monitoring", "no external monitor is configured", next_step=step)
