"""Settings from ``CERTJOB_*`` variables, or a file of them; an error names the variable and never the value."""

import io
import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from certjob.errors import ConfigurationError
from certjob.files import why_untrusted
from certjob.hours import DailyHours, parse_daily_hours
from certjob.redaction import keep

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

EMBEDDED = "embedded"


class _RefusedError(ValueError):
    """A value that certjob refuses. pydantic collects only a ValueError, and certjob's own errors are none."""

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        message = "no such time zone"
        raise _RefusedError(message, next_step="use an IANA name such as Europe/Oslo") from error
    return name


def _split(url: str, *, schemes: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(url)
        complete = bool(parts.path) if parts.scheme == "maildir" else bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        message = "is not a valid URL"
        raise _RefusedError(message) from error
    if parts.scheme not in schemes or not complete:
        starts = " or ".join(f"{scheme}:" for scheme in schemes)
        message = f"must be a URL that starts with {starts} and names its place"
        raise _RefusedError(message)
    return parts


def _split_safely(url: str, *, schemes: tuple[str, ...] = ("http", "https"), instead_of_login: str) -> SplitResult:
    """Also refuse a login in the URL, and plain HTTP to another machine."""
    parts = _split(url, schemes=schemes)
    if parts.username or parts.password:
        message = "must hold no user or password"
        raise _RefusedError(message, next_step=instead_of_login)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        message = "plain http:// is refused for anything but loopback, since the key would travel in the open"
        raise _RefusedError(message, next_step="use https://")
    return parts


def _web_address(url: str) -> str:
    _split(url, schemes=("http", "https"))
    return url


def _address(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", text):
        message = "must be an e-mail address"
        raise _RefusedError(message)
    return text


def _portal(url: str) -> str:
    _split_safely(url, instead_of_login="the function's key goes into CERTJOB_PORTAL_KEY")
    return url


def _channel(url: SecretStr) -> SecretStr:
    step = "use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"
    schemes = ("smtp", "smtps", "http", "https", "maildir")
    _split_safely(url.get_secret_value(), schemes=schemes, instead_of_login=step)
    return url


def _ping(url: SecretStr) -> SecretStr:
    step = "remove them: whoever knows the address may ping"
    parts = _split_safely(url.get_secret_value(), instead_of_login=step)
    if parts.query or parts.fragment:
        message = "must hold no ? and no #, because certjob appends /fail and ?rid=… to it"
        raise _RefusedError(message)
    return url


def _token(secret: SecretStr) -> SecretStr:
    """Refuse what cannot stand in a header: the HTTP client's own complaint would quote it."""
    if not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
        message = "must be one word of printable ASCII"
        raise _RefusedError(message, next_step="remove spaces, line breaks and letters such as å")
    return secret


def _hours(value: object) -> object:
    return parse_daily_hours(value) if isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything a command reads from its environment. Secrets print as stars."""

    model_config = SettingsConfigDict(
        env_prefix="CERTJOB_",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    database_url: SecretStr
    """A libpq URL, or the word ``embedded``."""
    time_zone: Annotated[str, AfterValidator(_known_zone)] = "Europe/Oslo"
    """IANA name; decides which calendar day it is."""
    portal_url: Annotated[str, AfterValidator(_portal)] | None = None
    """The Edge Function."""
    portal_key: Annotated[SecretStr, AfterValidator(_token)] | None = None
    notify_url: Annotated[SecretStr, AfterValidator(_channel)] | None = None
    """smtp://host[:port], smtps://host[:port], https://… or maildir:/path."""
    notify_user: str | None = Field(default=None, repr=False)
    notify_password: SecretStr | None = None
    mail_from: str | None = Field(default=None, repr=False)
    """The sender: address, or ``Name <address>``."""
    bounce_address: str | None = Field(default=None, repr=False)
    """Where a mail server returns what it cannot deliver; None: to the sender."""
    mail_hours: Annotated[DailyHours | None, NoDecode, BeforeValidator(_hours)] = None
    """When reminders and digests may be sent, in ``time_zone``; None: at any hour."""
    templates_dir: Path | None = None
    """A folder with message templates of the programme's own; looked into only by what writes messages."""
    app_url: Annotated[str, AfterValidator(_web_address)] | None = None
    """The app that coordinators use; digests link to it."""
    operator_address: Annotated[str, AfterValidator(_address)] | None = None
    """The e-mail address of the people who run certjob; digests tell coordinators to write there."""
    ping_url: Annotated[SecretStr, AfterValidator(_ping)] | None = None
    """Where `run` reports how it ended. A secret, because anyone who knows the address can report."""
    log_format: Literal["text", "json"] = "text"

    @field_validator("*", mode="before")
    @classmethod
    def _without_windows_line_end(cls, value: object) -> object:
        """Refuse it by its name: else the value would be used with it, or refused for another reason."""
        if isinstance(value, str) and value.endswith("\r"):
            message = "ends in a carriage return"
            raise _RefusedError(
                message, next_step=r"give the file it comes from Unix line ends (sed -i 's/\r$//' FILE)"
            )
        return value

    @property
    def zone(self) -> ZoneInfo:
        """Where the programme lives."""
        return ZoneInfo(self.time_zone)

    @property
    def today(self) -> date:
        """The calendar day it is now where the programme lives."""
        return datetime.now(self.zone).date()

    @property
    def mail_waits_until(self) -> datetime | None:
        """When mail may be sent again; None: it may be sent now."""
        return self.mail_hours.next_begin(datetime.now(self.zone)) if self.mail_hours else None

    def secrets(self) -> list[str]:
        """Return what no text may show: keys, passwords, and addresses that contain one."""
        found = [value.get_secret_value() for value in (self.portal_key, self.notify_password) if value is not None]
        webhook = self.notify_url.get_secret_value() if self.notify_url else ""
        found += [webhook] if webhook.startswith("http") else []
        database_url = self.database_url.get_secret_value()
        for groups in re.findall(r"://[^/@:]*:([^@]*)@|\bpassword\s*=\s*('[^']*'|[^\s'&]+)", database_url):
            password = "".join(groups).strip("'")
            found += [password, unquote(password), database_url]
        return found

    def contradictions(self) -> dict[str, ConfigurationError]:
        """Return what is missing or wrong beside the other settings, by its variable."""
        problems: dict[str, ConfigurationError] = {}
        channel = urlsplit(self.notify_url.get_secret_value()).scheme if self.notify_url else ""
        if self.portal_url and not self.portal_key:
            step = "set it to the key of the function at CERTJOB_PORTAL_URL"
            problems["CERTJOB_PORTAL_KEY"] = ConfigurationError("CERTJOB_PORTAL_KEY is missing", next_step=step)
        if channel in {"smtp", "smtps"} and not self.mail_from:
            step = "set it to the address that mail is sent from"
            problems["CERTJOB_MAIL_FROM"] = ConfigurationError("CERTJOB_MAIL_FROM is missing", next_step=step)
        if channel in {"http", "https"} and self.notify_password:
            try:
                _token(self.notify_password)
            except _RefusedError as error:
                message = f"CERTJOB_NOTIFY_PASSWORD: {error}"
                problems["CERTJOB_NOTIFY_PASSWORD"] = ConfigurationError(message, next_step=error.next_step)
        return problems


def load_settings(env_file: str | None = None) -> Settings:
    """Read the environment, and what it does not set from this file.

    Raises ConfigurationError with one clause per wrong or missing variable; no value is ever part of it.
    """
    settings, problems = _read(_from_file(env_file))
    if problems:
        first, *others = problems.values()
        raise ConfigurationError("; ".join(map(str, (first, *others)))) if others else first
    return settings


def survey_settings(env_file: str | None = None) -> tuple[Settings, dict[str, ConfigurationError]]:
    """Read the settings for a command that looks at everything; all others stop when one is wrong.

    Return them, what is wrong at its default and a missing database URL empty, and the errors by variable.
    """
    try:
        given = _from_file(env_file)
    except ConfigurationError as error:
        settings, problems = _read({})
        return settings, {"CERTJOB_ENV_FILE": error} | problems
    return _read(given)


def _read(given: dict[str, Any]) -> tuple[Settings, dict[str, ConfigurationError]]:
    """Return the environment's settings beside the given ones, and what is wrong with them, by variable."""
    problems: dict[str, ConfigurationError] = {}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        without: dict[str, Any] = {}
        for detail in error.errors(include_input=False, include_url=False):
            name = str(detail["loc"][0])
            without[name] = SecretStr("") if name == "database_url" else Settings.model_fields[name].default
            problems[_variable(name)] = _explain(detail, variable=_variable(name))
        settings = Settings(**given | without)
    for variable, problem in settings.contradictions().items():
        problems.setdefault(variable, problem)  # what is wrong was left out, and is not missing
    keep(settings.secrets())
    return settings, problems


def _from_file(env_file: str | None) -> dict[str, Any]:
    """Return the settings of a file that the environment does not set. Raises ConfigurationError."""
    if env_file is None:
        return {}
    try:
        suspect = why_untrusted(Path(env_file))
        text = "" if suspect else Path(env_file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: it is no UTF-8, or its name is no path
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        message = f"the settings file {env_file} cannot be read: {why}"
        raise ConfigurationError(message, next_step="correct --env-file or CERTJOB_ENV_FILE") from None
    if suspect:
        message = f"the settings file {env_file} is not used, because {suspect}"
        raise ConfigurationError(message, next_step="only this user and root may own and write it (chown, chmod go-w)")
    given = _parse(text, env_file)
    return {
        name: value
        for name in Settings.model_fields
        if (value := given.get(variable := _variable(name))) and not os.environ.get(variable)
    }


def _parse(text: str, env_file: str) -> dict[str, str | None]:
    """Return what the lines ``NAME='value'`` say, each as it stands there: nothing is expanded."""
    from dotenv.parser import parse_stream  # noqa: PLC0415 - only who has such a file pays for it

    given: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or ((binding.key or "").startswith("CERTJOB_") and binding.value is None):
            said = binding.original.string  # blank lines above it belong to it
            line = binding.original.line + said[: len(said) - len(said.lstrip())].count("\n")
            message = f"the settings file {env_file}, line {line}: not a setting"
            raise ConfigurationError(message, next_step="write NAME='value', or # before a remark")
        if binding.key is not None:
            given[binding.key] = binding.value
    return given


def _explain(detail: ErrorDetails, *, variable: str) -> ConfigurationError:
    if detail["type"] == "missing":
        step = "give a PostgreSQL URL or the word embedded, or name a file that does (--env-file)"
        return ConfigurationError(f"{variable} is not set", next_step=step)
    said = detail["msg"].removeprefix("Value error, ")
    return ConfigurationError(
        f"{variable}: {said}", next_step=getattr(detail.get("ctx", {}).get("error"), "next_step", None)
    )


def _variable(name: str) -> str:
    return f"CERTJOB_{name.upper()}"
