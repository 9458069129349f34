"""Settings from ``CERTJOB_*`` variables, or a file of them. Errors name the variable, never the value."""

import io
import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from certjob.errors import ConfigurationError
from certjob.files import why_untrusted
from certjob.redaction import keep

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

EMBEDDED = "embedded"

ABOUT_MAIL = frozenset(
    {
        "CERTJOB_NOTIFY_URL",
        "CERTJOB_NOTIFY_USER",
        "CERTJOB_NOTIFY_PASSWORD",
        "CERTJOB_MAIL_FROM",
        "CERTJOB_BOUNCE_ADDRESS",
        "CERTJOB_TEMPLATES_DIR",
        "CERTJOB_APP_URL",
        "CERTJOB_OPERATOR_ADDRESS",
    }
)
"""Errors of these settings stop the mails only, because a hide on the portal must not wait for them."""


class _RejectedError(ValueError):
    """A rejected value. It is a ValueError, because pydantic does not collect certjob's own errors."""

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        message = "no such time zone"
        raise _RejectedError(message, next_step="use an IANA name such as Europe/Oslo") from error
    return name


def _url(*, schemes: tuple[str, ...] = ("http", "https"), instead_of_login: str | None = None) -> AfterValidator:
    """Check a URL. With ``instead_of_login`` also reject a login in it, and plain HTTP to another machine."""

    def check(value: str | SecretStr) -> str | SecretStr:
        try:
            parts = urlsplit(value if isinstance(value, str) else value.get_secret_value())
            complete = bool(parts.path) if parts.scheme == "maildir" else bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            message = "is not a valid URL"
            raise _RejectedError(message) from error
        if parts.scheme not in schemes or not complete:
            starts = " or ".join(f"{scheme}:" for scheme in schemes)
            place = "a path" if parts.scheme == "maildir" else "a host"
            message = f"must be a URL that starts with {starts} and includes {place}"
            raise _RejectedError(message)
        if instead_of_login and (parts.username or parts.password):
            message = "must not contain a user name or password"
            raise _RejectedError(message, next_step=instead_of_login)
        if instead_of_login and parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
            message = "plain http:// is allowed only for loopback, because the key would be sent unencrypted"
            raise _RejectedError(message, next_step="use https://")
        return value

    return AfterValidator(check)


def _address(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", text):
        message = "must be an e-mail address"
        raise _RejectedError(message)
    return text


def _without_query(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.query or parts.fragment:
        message = "must not contain ? or #, because certjob appends /fail and ?rid=… to it"
        raise _RejectedError(message)
    return url


def _token(secret: SecretStr) -> SecretStr:
    """Reject characters that a header cannot have, because the HTTP client's error would quote the secret."""
    if not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
        message = "must be one word of printable ASCII"
        raise _RejectedError(message, next_step="remove spaces, line breaks and letters such as å")
    return secret


_CHANNEL = _url(
    schemes=("smtp", "smtps", "maildir"),
    instead_of_login="use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD",
)
_PING = _url(instead_of_login="remove them, because the address itself is the secret")


class Settings(BaseSettings):
    """The settings of a command. Secrets are printed as stars."""

    model_config = SettingsConfigDict(
        env_prefix="CERTJOB_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True, frozen=True
    )

    database_url: SecretStr
    """A libpq URL, or the word ``embedded``."""
    time_zone: Annotated[str, AfterValidator(_known_zone)] = "Europe/Oslo"
    """IANA name. It decides which calendar day it is."""
    portal_url: Annotated[str, _url(instead_of_login="the function's key goes into CERTJOB_PORTAL_KEY")] | None = None
    """The Edge Function."""
    portal_key: Annotated[SecretStr, AfterValidator(_token)] | None = None
    notify_url: Annotated[str, _CHANNEL] | None = None
    """smtp://host[:port], smtps://host[:port] or maildir:/path."""
    notify_user: str | None = Field(default=None, repr=False)
    notify_password: SecretStr | None = None
    mail_from: str | None = Field(default=None, repr=False)
    """The sender: an address, or ``Name <address>``."""
    bounce_address: str | None = Field(default=None, repr=False)
    """The address for undeliverable mails. None: the sender."""
    templates_dir: Path | None = None
    """A folder with message templates of the programme."""
    app_url: Annotated[str, _url()] | None = None
    """The app of the coordinators. Digests link to it."""
    operator_address: Annotated[str, AfterValidator(_address)] | None = None
    """The e-mail address of the people who run certjob, for coordinators."""
    ping_url: Annotated[SecretStr, _PING, AfterValidator(_without_query)] | None = None
    """The monitor of `run`. A secret, because anyone who knows the address can report to it."""
    _mail_problem: ConfigurationError | None = PrivateAttr(default=None)

    @field_validator("*", mode="before")
    @classmethod
    def _without_windows_line_end(cls, value: object) -> object:
        """Reject it by name, because another error would not explain an invisible character."""
        if isinstance(value, str) and value.endswith("\r"):
            message = "ends in a carriage return"
            raise _RejectedError(message, next_step=r"give its file Unix line ends (sed -i 's/\r$//' FILE)")
        return value

    @property
    def mail_problem(self) -> ConfigurationError | None:
        """The errors of the settings in ``ABOUT_MAIL``. These settings have their defaults, and no mail may be sent."""
        return self._mail_problem

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the programme."""
        return ZoneInfo(self.time_zone)

    @property
    def today(self) -> date:
        """The current calendar day in this time zone."""
        return datetime.now(self.zone).date()

    def secrets(self) -> list[str]:
        """Return the key, the passwords, and the address that contains one: no text may show them."""
        found = [value.get_secret_value() for value in (self.portal_key, self.notify_password) if value is not None]
        database_url = self.database_url.get_secret_value()
        for groups in re.findall(r"://[^/@:]*:([^@]*)@|\bpassword\s*=\s*('[^']*'|[^\s'&]+)", database_url):
            password = "".join(groups).strip("'")
            found += [password, unquote(password), database_url]
        return found

    def contradictions(self) -> dict[str, ConfigurationError]:
        """Return the errors of settings that another setting requires, or restricts, by variable."""
        problems: dict[str, tuple[str, str]] = {}
        channel = urlsplit(self.notify_url or "").scheme
        if self.portal_url and not self.portal_key:
            problems["CERTJOB_PORTAL_KEY"] = (" is missing", "set it to the key of the function at CERTJOB_PORTAL_URL")
        if channel in {"smtp", "smtps"} and not self.mail_from:
            problems["CERTJOB_MAIL_FROM"] = (" is missing", "set it to the address that mail is sent from")
        return {name: ConfigurationError(name + text, next_step=step) for name, (text, step) in problems.items()}


def load_settings(env_file: str | None = None) -> Settings:
    """Read the environment, and from this file the settings that are not set there.

    Raises ConfigurationError with one clause per wrong or missing variable, without their values. If only settings
    about mail are wrong, it is ``mail_problem`` instead.
    """
    settings, problems = _read(_from_file(env_file))
    if problems:
        first, *others = problems.values()
        problem = ConfigurationError("; ".join(map(str, (first, *others)))) if others else first
        if not problems.keys() <= ABOUT_MAIL:
            raise problem
        settings._mail_problem = problem
    return settings


def survey_settings(env_file: str | None = None) -> tuple[Settings, dict[str, ConfigurationError]]:
    """Return the settings for `certjob check`, and the errors by variable. Other commands stop at an error.

    A wrong setting has its default, and a missing database URL is empty.
    """
    try:
        given = _from_file(env_file)
    except ConfigurationError as error:
        settings, problems = _read({})
        return settings, {"CERTJOB_ENV_FILE": error} | problems
    return _read(given)


def _read(given: dict[str, Any]) -> tuple[Settings, dict[str, ConfigurationError]]:
    """Return the given settings and those of the environment, and the errors by variable."""
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
        problems.setdefault(variable, problem)  # a wrong value was left out, but is not missing
    keep(settings.secrets())
    return settings, problems


def _from_file(env_file: str | None) -> dict[str, Any]:
    """Return the settings of a file that are not set in the environment. Raises ConfigurationError."""
    if env_file is None:
        return {}
    try:
        suspect = why_untrusted(Path(env_file))
        text = "" if suspect else Path(env_file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a path
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
    """Return the values of lines ``NAME='value'``, without expanding variables."""
    from dotenv.parser import parse_stream  # noqa: PLC0415 - most commands have no such file

    given: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or ((binding.key or "").startswith("CERTJOB_") and binding.value is None):
            text = binding.original.string  # with the blank lines above it
            line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
            message = f"the settings file {env_file}, line {line}: not a setting"
            raise ConfigurationError(message, next_step="write NAME='value', or # before a comment")
        if binding.key is not None:
            given[binding.key] = binding.value
    return given


def _explain(detail: ErrorDetails, *, variable: str) -> ConfigurationError:
    if detail["type"] == "missing":
        missing = "give a PostgreSQL URL or the word embedded, or name a file that does (--env-file)"
        return ConfigurationError(f"{variable} is not set", next_step=missing)
    step = getattr(detail.get("ctx", {}).get("error"), "next_step", None)
    return ConfigurationError(f"{variable}: {detail['msg'].removeprefix('Value error, ')}", next_step=step)


def _variable(name: str) -> str:
    return f"CERTJOB_{name.upper()}"
