"""Options that several commands share, and what a command needs before it starts: settings, database, ways out."""

import functools
import inspect
import logging.config
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID, uuid4

import typer

if TYPE_CHECKING:
    from certjob.cli.terminal.output import Output
    from certjob.database import Connection
    from certjob.night.deliveries import Delivery
    from certjob.settings import Settings
    from certjob.stopping import StopFlag
    from certjob.views.monitoring import Monitor

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log everything, and where an internal error was raised.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing on success, on a terminal too; warnings are said.")
]
LogFormat = Annotated[
    str | None,
    typer.Option(help="How log lines look: text or json.  [env: CERTJOB_LOG_FORMAT; default: text]", metavar="FORMAT"),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
EnvFile = Annotated[
    str | None,
    typer.Option(
        envvar="CERTJOB_ENV_FILE",
        metavar="FILE",
        help="Take the settings that the environment lacks from here: lines NAME='value'.",
    ),
]
OrganisationSlug = Annotated[
    str | None, typer.Option("--organisation", metavar="SLUG", help="Only this organisation's mentors.")
]
AllowEarlierDate = Annotated[
    bool, typer.Option("--allow-earlier-date", help="Accept a day before that of the last finished night.")
]
IgnoreDatabaseClock = Annotated[
    bool,
    typer.Option(
        "--ignore-database-clock", help="Go by this machine's date although the database server's is another one."
    ),
]
DeliverFor = Annotated[
    str,
    typer.Option(metavar="TIME", help="How long deliveries may take, such as 90s, 30m or 2h; the rest stays pending."),
]

ENV_FILE = "certjob.env_file"
"""Where a command's context has the name of its settings file."""


Function = TypeVar("Function", bound=Callable[..., int])


class Commands(typer.Typer):
    """A group of commands of which each takes its settings from a file, if it is asked to."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Register a function as Typer does, with ``--env-file`` beside its own options."""
        register = super().command(name, **options)

        def add(function: Function) -> Function:
            register(_with_env_file(function))
            return function

        return add


def _with_env_file(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def command(context: typer.Context, *, env_file: str | None, **arguments: Any) -> int:
        context.meta[ENV_FILE] = env_file
        return function(context, **arguments)

    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter("env_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=EnvFile)
    parameters = [*signature.parameters.values(), option]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s?)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a command works with."""

    settings: "Settings"
    connection: "Connection"
    reconnect: "Callable[[], Connection]"
    """Opens another one to the same database."""
    output: "Output"
    stop: "StopFlag"
    run_id: UUID
    """What the command's log lines, its line in ``job_runs`` and its pings share."""
    monitor: "Monitor | None" = None
    """Who tells others about the run; None: the command is not watched."""


def parse_duration(text: str) -> float:
    """Return the seconds in a text such as ``90s``, ``30m``, ``2h`` or ``1h30m``.

    >>> parse_duration("1h30m"), parse_duration("45")
    (5400.0, 45.0)
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        message = f"{text[:40]!r} is no duration; give one such as 90s, 30m or 2h"
        raise typer.BadParameter(message)
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def parse_day(text: str) -> date:
    """Return the date in a text such as ``2026-12-31``."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        message = f"{text[:40]!r} is no date; give one such as 2026-12-31"
        raise typer.BadParameter(message) from None


def set_up_logs(*, verbose: bool, log_format: str | None, run_id: UUID | None = None) -> None:
    """Send certjob's log lines to stderr; without a format, in that of CERTJOB_LOG_FORMAT."""
    from certjob.cli.terminal.logs import log_configuration

    if log_format not in (None, "text", "json"):
        message = f"--log-format must be text or json, not {log_format[:40]!r}"
        raise typer.BadParameter(message)
    form = log_format or ("json" if os.environ.get("CERTJOB_LOG_FORMAT") == "json" else "text")
    logging.config.dictConfig(log_configuration(verbose=verbose, log_format=form, run_id=run_id))


@contextmanager
def session(
    context: typer.Context,
    *,
    quiet: bool = False,
    verbose: bool = False,
    log_format: str | None = None,
    need_schema: bool = True,
    interruptible: bool = False,
    outlasts_restarts: bool = False,
    watched_as: str | None = None,
    pings: bool = False,
) -> Iterator[Session]:
    """Read the settings, open the database and check its schema; close everything on the way out.

    With ``watched_as``, the command's name, the metrics file is written at its end; with ``pings`` somebody outside is
    told that it began and how it ended.
    With ``interruptible`` a signal breaks the work off; without, the work looks at ``stop`` and ends in its own way.
    With ``outlasts_restarts`` a database that goes away is waited for, between two pieces of work.
    """
    from certjob import __version__, database
    from certjob.cli.terminal.output import Output
    from certjob.database import embedded, migrations
    from certjob.settings import load_settings

    stop: StopFlag = context.obj
    run_id = uuid4()
    set_up_logs(verbose=verbose, log_format=log_format, run_id=run_id)
    settings = load_settings(context.meta.get(ENV_FILE))
    set_up_logs(verbose=verbose, log_format=log_format or settings.log_format, run_id=run_id)
    monitor = None
    if watched_as is not None:
        monitor = _watch(settings, command=watched_as, pings=pings, run_id=run_id, stop=stop)
    with embedded.database_url(settings.database_url.get_secret_value()) as url:
        with stop.interruptible():
            connection = database.connect(url)
        with connection:
            with stop.interruptible():
                server = connection.info.parameter_status("server_version")
                if need_schema:
                    migrations.require_current(connection)
            logger.debug(
                "certjob %s on PostgreSQL %s, today is %s in %s",
                __version__,
                server,
                settings.today,
                settings.time_zone,
                extra={"event": "opened"},
            )
            if outlasts_restarts:
                database.outlast_restarts(connection, stop=stop)
            try:
                with stop.interruptible() if interruptible else nullcontext():
                    yield Session(
                        settings=settings,
                        connection=connection,
                        reconnect=lambda: database.connect(url),
                        output=Output(quiet=quiet),
                        stop=stop,
                        run_id=run_id,
                        monitor=monitor,
                    )
            finally:
                if monitor is not None:
                    monitor.write_metrics(connection, today=settings.today)


def _watch(settings: "Settings", *, command: str, pings: bool, run_id: UUID, stop: "StopFlag") -> "Monitor":
    """Tell others that the run begins, and have the end of the process tell them its exit code."""
    from certjob.cli.terminal.plain import print_warning
    from certjob.views.monitoring import Monitor

    def warn(text: str) -> None:
        print_warning(f"certjob {command}", text)

    monitor = Monitor(settings, run_id=run_id, pings=pings, stop=stop, warn=warn)
    stop.at_end = monitor.end
    with stop.interruptible():
        monitor.start()
    return monitor


def delivery_from(settings: "Settings", *, deadline_seconds: float = 7200.0) -> "Delivery":
    """Build the ways out from the settings; nothing is connected yet. Raises ConfigurationError.

    A broken template of the programme's own stops no night: certjob's own words take its place, and it is said.
    """
    from certjob.mail.channels.notify import open_channel
    from certjob.mail.messages import open_templates
    from certjob.night.deliveries import Delivery
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
    from certjob.portal.push import CALL_DEADLINE_SECONDS, portal_policy

    url, key = settings.portal_url, settings.portal_key

    def make_target() -> HLFDynamicsSyncService:
        return HLFDynamicsSyncService(
            url or "", key.get_secret_value() if key else "", deadline_seconds=CALL_DEADLINE_SECONDS
        )

    if url:
        make_target()  # a key that HTTP cannot carry is said now, not after the review
    return Delivery(
        make_target=make_target if url else None,
        channel=open_channel(settings),
        mail_from=settings.mail_from,
        mail_waits_until=lambda: settings.mail_waits_until,
        open_templates=lambda: open_templates(settings.templates_dir),
        zone=settings.zone,
        policy=portal_policy(max_attempts=settings.portal_attempts),
        concurrency=settings.portal_concurrency,
        calls_per_second=settings.portal_calls_per_second,
        deadline_seconds=deadline_seconds,
    )
