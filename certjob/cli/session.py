"""Prepare a command: common options, settings, the database, the portal and the mail channel."""

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import tzinfo
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID, uuid4

import typer
from typer.core import TyperCommand

from certjob.cli.logs import set_up_logs
from certjob.cli.output import Output, Phases, print_json, say
from certjob.errors import EXIT_CODES, ConfigurationError, Outcome

if TYPE_CHECKING:
    from certjob.database import Connection
    from certjob.jobs.job import Job
    from certjob.page import Page
    from certjob.settings import Settings
    from certjob.stopping import StopFlag

Function = TypeVar("Function", bound=Callable[..., int])

logger = logging.getLogger(__name__)


class Commands(typer.Typer):
    """Commands under one heading of --help. Each function takes a Call first, and returns the exit code."""

    def __init__(self, *, group: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._group = group

    def command(  # type: ignore[override]
        self, name: str | None = None, *, examples: tuple[str, ...] = ()
    ) -> Callable[[Function], Function]:
        """Register a function with Typer. Its docstring is the help."""
        epilog = "\n".join(("\b", "Examples:", *(f"  {line}" for line in examples))) if examples else None

        def register(function: Function) -> Function:
            paragraphs = (inspect.getdoc(function) or "").split("\n\n")
            text = "\n\n".join(" ".join(each.split()) for each in paragraphs)
            options: dict[str, Any] = {"cls": _Command, "rich_help_panel": self._group, "help": text, "epilog": epilog}
            return super(Commands, self).command(name, **options)(function)

        return register


def _common_options(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every step, and the source of an internal error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no result. Warnings are still printed.")] = False,
    env_file: Annotated[
        str | None,
        typer.Option(
            envvar="CERTJOB_ENV_FILE",
            metavar="FILE",
            help="Read settings that are not set in the environment from FILE (lines NAME='value').",
        ),
    ] = None,
) -> None:
    """Has the options of every command."""


@functools.cache
def _common_parameters() -> list[Any]:
    options = typer.Typer(add_completion=False)
    options.command()(_common_options)
    return typer.main.get_command(options).params


class Call(typer.Context):
    """The called command: its common options, its output, and in ``session`` its settings and its connection."""

    json = verbose = quiet = False
    env_file: str | None = None
    settings: "Settings"
    connection: "Connection"
    run_id: UUID
    """Identifies the command in log lines, ``job_runs`` and pings."""
    ping_body: dict[str, Any]
    """The content of the final ping, in addition to the exit code."""

    @property
    def stop(self) -> "StopFlag":
        """Return the flag that a signal sets."""
        stop: StopFlag = self.obj
        return stop

    @functools.cached_property
    def output(self) -> Output:
        """Return stdout and stderr."""
        return Output(quiet=self.quiet)

    def progress(self) -> Phases:
        """Show progress in a ``with`` block."""
        return self.output.progress()

    def show(
        self,
        document: Mapping[str, object],
        page: "Page" = (),
        *,
        success: str = "",
        zone: tzinfo | None = None,
        csv: bool = False,
        also_quiet: bool = False,
    ) -> None:
        """Print the JSON document, or the page and, if a person is watching, the words about the success.

        Iterators are read only if they are printed. ``zone`` and ``csv`` are those of ``Output.show``.
        """
        if self.json:
            print_json({"outcome": "ok", **document})
        elif also_quiet or not self.quiet:
            self.output.show(page, zone=zone, csv=csv)
            if success:
                self.output.success(success)

    def say(self, text: str, level: str = "attention") -> None:
        """Print a line on stderr, also with -q: ``failed``, ``attention``, ``warning`` or ``note``."""
        say(self.command_path, text, level=level)

    def end(self, outcome: Outcome, reasons: Iterable[str]) -> int:
        """Print why the command failed or why someone has to act, also with -q. Return the exit code."""
        for reason in reasons:
            self.say(reason, "failed" if outcome is Outcome.FAILED else "attention")
        return EXIT_CODES[outcome]

    def name_left_out(self, broken: Mapping[UUID, str]) -> int:
        """Print the mentors that are missing in a result, with reasons. Return the exit code."""
        for mentor_id, reason in broken.items():
            self.say(f"mentor {mentor_id} is left out: {reason}")
        return 3 if broken else 0

    @contextmanager
    def session(self, *, need_schema: bool = True, interruptible: bool = False, pings: bool = False) -> Iterator[None]:
        """Read the settings, open the database, check its schema, and close everything at the end.

        With ``pings``, the monitor at CERTJOB_PING_URL receives the exit code. With ``interruptible``, a signal
        interrupts the work; otherwise the work must check ``stop``.
        """
        from certjob.database import embedded
        from certjob.settings import load_settings

        stop, settings = self.stop, load_settings(self.env_file)
        self.settings, self.run_id, self.ping_body = settings, uuid4(), {}
        set_up_logs(verbose=self.verbose)
        if pings and settings.ping_url is not None:
            from certjob.reports.pings import ping

            url = settings.ping_url.get_secret_value()
            about: dict[str, Any] = {"run_id": self.run_id, "about": self.ping_body, "stop": stop}
            stop.at_end = functools.partial(ping, url, **about, warn=lambda text: self.say(text, "warning"))
        with (
            embedded.database_url(settings.database_url.get_secret_value()) as url,
            _open(url, settings, need_schema=need_schema, stop=stop) as self.connection,
            stop.interruptible() if interruptible else nullcontext(),
        ):
            yield

    def job(self, progress: "Phases | None" = None, *, seconds: float | None = None) -> "Job":
        """Prepare a job without connecting. Its deliveries take at most ``seconds``. Raises ConfigurationError.

        A wrong setting about mail or a broken template does not stop the job: it sends no mail, or certjob's own
        template, and reports it.
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
        return Job(
            connection=self.connection,
            today=settings.today,
            stop=self.stop,
            make_portal=make_portal,
            channel=channel,
            mail_problem=mail_problem,
            app_url=settings.app_url or "",
            operator_address=settings.operator_address or "",
            templates_dir=settings.templates_dir,
            zone=settings.zone,
            present_day=lambda: settings.today,
            deadline_seconds=seconds or DELIVER_SECONDS,
            phase=progress.phase if progress is not None else show_nothing,
            run_id=self.run_id,
        )


class _Command(TyperCommand):
    """A command with a Call as its context, and with the options of every command."""

    context_class = Call

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += _common_parameters()

    def invoke(self, ctx: Any) -> Any:
        """Move the common options to the Call, and call the function."""
        for name in inspect.signature(_common_options).parameters:
            setattr(ctx, name, ctx.params.pop(name))
        return super().invoke(ctx)


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
        logger.debug("certjob %s on PostgreSQL %s, today is %s in %s", *about)
        yield connection
