"""Prepare a command: common options, settings, the database, the portal and the mail channel."""

import functools
import logging.config
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import typer

from certjob.cli.help import PlainHelp
from certjob.cli.help import examples as help_examples
from certjob.cli.terminal import plain
from certjob.cli.terminal.logs import log_configuration
from certjob.errors import EXIT_CODES, ConfigurationError, Outcome

if TYPE_CHECKING:
    from certjob.cli.terminal.output import Output, Phases
    from certjob.database import Connection
    from certjob.jobs.job import Job
    from certjob.settings import Settings
    from certjob.stopping import StopFlag

Function = TypeVar("Function", bound=Callable[..., int])
_BEGAN_AT = "certjob.began_at"

_LEAST_SECONDS = 120.0
"""For the deliveries of a job that starts again when the time for them is nearly over."""

logger = logging.getLogger(__name__)


class Commands(typer.Typer):
    """Commands under one heading of --help. Each function takes the context first, and makes a Call of it."""

    def __init__(self, *, group: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._group = group

    def command(  # type: ignore[override]
        self, name: str | None = None, *, short_help: str | None = None, examples: tuple[str, ...] = ()
    ) -> Callable[[Function], Function]:
        """Register a function with Typer."""
        epilog = help_examples(*examples) if examples else None
        return super().command(name, cls=PlainHelp, rich_help_panel=self._group, short_help=short_help, epilog=epilog)


def start_again(command: Callable[..., int]) -> Callable[..., int]:
    """Run a command again if the database connection is lost."""

    @functools.wraps(command)
    def starting_again(context: typer.Context, **options: Any) -> int:
        from certjob import database

        return database.start_again_when_lost(lambda: command(context, **options), stop=context.obj)

    return starting_again


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The settings, connection and output of a running command."""

    settings: "Settings"
    connection: "Connection"
    output: "Output"
    stop: "StopFlag"
    began_at: float
    """When the command began, on the monotonic clock."""
    run_id: UUID
    """Identifies the command in log lines, ``job_runs`` and pings."""
    ping_body: dict[str, Any]
    """The content of the final ping, in addition to the exit code."""

    def job(self, progress: "Phases | None" = None, *, seconds: float | None = None) -> "Job":
        """Prepare a job, whose deliveries take at most ``seconds``, without connecting. Raises ConfigurationError.

        A job that starts again gets the rest of the time. A wrong setting about mail or a broken template does not stop
        it: it sends no mail, or certjob's own template, and reports it.
        """
        from certjob.jobs.job import DELIVER_SECONDS, Job, show_nothing
        from certjob.mail.channels.notify import open_channel
        from certjob.portal.push import CALL_DEADLINE_SECONDS

        settings, make_portal = self.settings, None
        if settings.portal_url and settings.portal_key:
            from certjob.portal.hlf_dynamics import HLFDynamicsSyncService

            key = settings.portal_key.get_secret_value()
            make_portal = functools.partial(
                HLFDynamicsSyncService, settings.portal_url, key, deadline_seconds=CALL_DEADLINE_SECONDS
            )
            make_portal()  # an unusable address fails now, not after the review
        channel, mail_problem = None, None
        try:
            channel = open_channel(settings)
        except ConfigurationError as error:
            mail_problem = error
        rest = (seconds or DELIVER_SECONDS) - (time.monotonic() - self.began_at)
        return Job(
            connection=self.connection,
            today=settings.today,
            stop=self.stop,
            make_portal=make_portal,
            channel=channel,
            mail_problem=mail_problem,
            mail_waits_until=lambda: settings.mail_waits_until,
            app_url=settings.app_url or "",
            operator_address=settings.operator_address or "",
            templates_dir=settings.templates_dir,
            zone=settings.zone,
            present_day=lambda: settings.today,
            deadline_seconds=max(rest, _LEAST_SECONDS),
            phase=progress.phase if progress is not None else show_nothing,
            run_id=self.run_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The context of the called command, and its common options."""

    context: typer.Context
    json: bool = False
    verbose: bool = False
    quiet: bool = False
    env_file: str | None = None

    def __post_init__(self) -> None:
        """Note when the command began. If it starts again, this moment stays."""
        self.context.meta.setdefault(_BEGAN_AT, time.monotonic())

    @property
    def command(self) -> str:
        """Return the words of the command, for example ``certjob db migrate``."""
        return self.context.command_path

    @property
    def stop(self) -> "StopFlag":
        """Return the flag that a signal sets."""
        stop: StopFlag = self.context.obj
        return stop

    def attention(self, reason: str) -> None:
        """Print a reason why someone has to act, also with -q."""
        plain.print_attention(self.command, reason)

    def end(self, outcome: Outcome, reasons: Iterable[str]) -> int:
        """Print why the command failed or why someone has to act, also with -q. Return the exit code."""
        for reason in reasons:
            (plain.print_error if outcome is Outcome.FAILED else plain.print_attention)(self.command, reason)
        return EXIT_CODES[outcome]

    def name_left_out(self, broken: Mapping[UUID, str]) -> int:
        """Print the mentors that are missing in a result, with reasons. Return the exit code."""
        for mentor_id, reason in broken.items():
            self.attention(f"mentor {mentor_id} is left out: {reason}")
        return 3 if broken else 0

    @contextmanager
    def session(
        self, *, need_schema: bool = True, interruptible: bool = False, pings: bool = False
    ) -> Iterator[Session]:
        """Read the settings, open the database, check its schema, and close everything at the end.

        With ``pings``, the monitor at CERTJOB_PING_URL receives the exit code. With ``interruptible``, a signal
        interrupts the work; otherwise the work must check ``stop``.
        """
        from certjob.cli.terminal.output import Output
        from certjob.database import embedded
        from certjob.settings import load_settings

        stop, settings = self.stop, load_settings(self.env_file)
        run_id, ping_body = uuid4(), dict[str, Any]()
        set_up_logs(verbose=self.verbose, log_format=settings.log_format, run_id=run_id)
        if pings and settings.ping_url is not None:
            from certjob.reports.pings import ping

            warn = functools.partial(plain.print_warning, self.command)
            url = settings.ping_url.get_secret_value()
            stop.at_end = functools.partial(ping, url, run_id=run_id, about=ping_body, stop=stop, warn=warn)
        with (
            embedded.database_url(settings.database_url.get_secret_value()) as url,
            _open(url, settings, need_schema=need_schema, stop=stop) as connection,
            stop.interruptible() if interruptible else nullcontext(),
        ):
            yield Session(
                settings=settings,
                connection=connection,
                output=Output(quiet=self.quiet, stop=stop),
                stop=stop,
                began_at=self.context.meta[_BEGAN_AT],
                run_id=run_id,
                ping_body=ping_body,
            )


@contextmanager
def _open(url: str, settings: "Settings", *, need_schema: bool, stop: "StopFlag") -> "Iterator[Connection]":
    """Connect and check that the schema belongs to this version of certjob."""
    from certjob import __version__, database
    from certjob.database import migrations

    with stop.interruptible():
        connection = database.connect(url)
    with connection:
        server = connection.info.parameter_status("server_version")
        if need_schema:
            with stop.interruptible():
                migrations.require_current(connection)
        about = (__version__, server, settings.today, settings.time_zone)
        logger.debug("certjob %s on PostgreSQL %s, today is %s in %s", *about, extra={"event": "opened"})
        yield connection


def set_up_logs(*, verbose: bool, log_format: str | None = None, run_id: UUID | None = None) -> None:
    """Write log lines to stderr, in this format or in that of CERTJOB_LOG_FORMAT in the environment."""
    form = log_format or ("json" if os.environ.get("CERTJOB_LOG_FORMAT") == "json" else "text")
    logging.config.dictConfig(log_configuration(verbose=verbose, log_format=form, run_id=run_id))
