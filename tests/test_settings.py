"""Settings: required ones, refused values, files of settings. No error shows a value."""

import os
import traceback
from pathlib import Path

import pytest

from certjob.errors import ConfigurationError
from certjob.settings import Settings, load_settings

SECRET = "hunter2"
"""A part of the refused values."""
DATABASE_URL = "postgresql://certjob@db.example/certjob"
PORTAL = {"PORTAL_URL": "https://portal.example/sync", "PORTAL_KEY": "k-123"}


class Environment:
    """Sets ``CERTJOB_*`` variables, which are named without their prefix. It starts without any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set = monkeypatch.setenv
        for name in list(os.environ):
            if name.upper().startswith("CERTJOB_"):
                monkeypatch.delenv(name)

    def load(self, **variables: str) -> Settings:
        """Return the settings with these variables and a database."""
        for name, value in ({"DATABASE_URL": DATABASE_URL} | variables).items():
            self.set(f"CERTJOB_{name}", value)
        return load_settings()

    def complaint(self, file: Path | str | None = None, **variables: str) -> str:
        """Return the error about these variables, or about a file. Neither it nor the traceback has the secret."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings(str(file)) if file else self.load(**variables)
        assert caught.value.exit_code == 2
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    monkeypatch.chdir(tmp_path)
    return Environment(monkeypatch)


@pytest.mark.parametrize("empty", [(), ("PORTAL_URL", "TIME_ZONE", "LOG_FORMAT")], ids=["unset", "empty variables"])
def test_settings_with_a_database_only_send_and_push_nothing(environment: Environment, empty: tuple[str, ...]) -> None:
    """An empty variable counts as not set, so ``CERTJOB_PORTAL_URL=`` in a crontab switches the portal off."""
    settings = environment.load(**dict.fromkeys(empty, ""))

    assert settings.database_url.get_secret_value() == DATABASE_URL
    assert (settings.time_zone, settings.log_format) == ("Europe/Oslo", "text")
    assert (settings.portal_url, settings.portal_key, settings.notify_url, settings.ping_url) == (None,) * 4
    with pytest.raises(ValueError, match="frozen"):
        settings.time_zone = "UTC"  # type: ignore[misc]


def test_database_url_is_required(environment: Environment) -> None:
    """A cron job without the variable must fail, and not work on an empty database."""
    missing = "CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL or the word embedded"
    with pytest.raises(ConfigurationError, match=missing):
        load_settings()

    assert environment.complaint(DATABASE_URL="").startswith(missing)


NO_ZONE = "no such time zone; use an IANA name such as Europe/Oslo"
NO_HTTP = "plain http:// is allowed only for loopback"
NO_USER = "must not contain a user name or password"
NOT_A_WORD = "must be one word of printable ASCII"
A_URL = "must be a URL that starts with"
REFUSED = {
    "TIME_ZONE": {f"Europe/{SECRET}": NO_ZONE, f"../../{SECRET}": NO_ZONE, "Europe": NO_ZONE},
    "PORTAL_URL": {
        f"https:///{SECRET}": f"{A_URL} http: or https: and includes a host",
        f"ftp://{SECRET}.example/": A_URL,
        f"https://{SECRET}.example:0/": A_URL,
        f"https://portal.example:{SECRET}/": "is not a valid URL",
        f"HTTP://portal.example/?key={SECRET}": NO_HTTP,
        f"http://localhost.evil.example/{SECRET}": NO_HTTP,
        f"https://{SECRET}@portal.example/": f"{NO_USER}; the function's key goes into",
    },
    "PORTAL_KEY": {f"{SECRET}\n": NOT_A_WORD, f"nøkkel-{SECRET}": NOT_A_WORD},
    "LOG_FORMAT": {SECRET: "Input should be"},
    "NOTIFY_URL": {
        f"mailto:{SECRET}@hlf.example": f"{A_URL} smtp: or smtps:",
        "maildir:": "includes a path",
        "smtp:": "includes a host",
        f"http://push.example/?key={SECRET}": NO_HTTP,
        f"https://:{SECRET}@push.example": "use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD",
    },
    "MAIL_HOURS": {f"08:00-{SECRET}": "must be two times of the day"},
    "APP_URL": {f"javascript:{SECRET}": A_URL},
    "OPERATOR_ADDRESS": {SECRET: "must be an e-mail address"},
    "PING_URL": {
        f"http://hc.example/{SECRET}": NO_HTTP,
        f"https://hc.example/{SECRET}?x=1": "must not contain ? or #",
        f"https://hc.example/{SECRET}#x": "must not contain ? or #",
    },
    "DATABASE_URL": {f"postgresql://u:{SECRET}@h/x\r": "ends in a carriage return; "},
}
"""The reason of the error, by variable and value."""


@pytest.mark.parametrize(("setting", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_wrong_value_is_refused_by_the_name_of_its_variable(environment: Environment, setting: str, value: str) -> None:
    """The error has the reason, and not the value."""
    error = environment.complaint(**PORTAL | {setting: value})

    assert error.startswith(f"CERTJOB_{setting}: ")
    assert error.count(REFUSED[setting][value]) == 1


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"PORTAL_URL": PORTAL["PORTAL_URL"]}, "PORTAL_KEY is missing; set it to the key"),
        ({"NOTIFY_URL": "SMTP://mail.example"}, "MAIL_FROM is missing; set it to the address"),
        ({"NOTIFY_URL": "smtps://mail.example"}, "MAIL_FROM is missing"),
        ({"NOTIFY_URL": "https://push.example/", "NOTIFY_PASSWORD": f"{SECRET}\n"}, f"NOTIFY_PASSWORD: {NOT_A_WORD}"),
    ],
    ids=["portal without a key", "smtp without a sender", "smtps without a sender", "password of a webhook"],
)
def test_setting_that_another_one_requires_is_named(
    environment: Environment, variables: dict[str, str], error: str
) -> None:
    """The error has the missing or wrong setting, not the one that requires it."""
    assert environment.complaint(**variables).startswith(f"CERTJOB_{error}")


@pytest.mark.parametrize(
    "variables",
    [
        {"PORTAL_URL": "http://LOCALHOST:8000/", "NOTIFY_URL": "http://localhost:8001/"},
        {"PORTAL_URL": "http://127.0.0.1:8000/", "NOTIFY_URL": "SMTPS://mail.example:465"},
        {"PORTAL_URL": "http://[::1]:8000/", "NOTIFY_URL": "https://push.example/"},
        {"NOTIFY_URL": "maildir:/var/mail/out"},
        {"NOTIFY_URL": "smtp://mail.example", "NOTIFY_PASSWORD": "blå bær", "LOG_FORMAT": "json"},
        {"APP_URL": "http://app.example"},
    ],
    ids=["localhost", "127.0.0.1", "::1", "maildir", "smtp", "app"],
)
def test_valid_values_are_not_changed(environment: Environment, variables: dict[str, str]) -> None:
    """Plain HTTP to this machine is valid, and each kind of channel."""
    settings = environment.load(**PORTAL | {"MAIL_FROM": "certjob@hlf.example"} | variables)

    for variable, value in variables.items():
        found = getattr(settings, variable.lower())
        assert str(getattr(found, "get_secret_value", lambda found=found: found)()) == value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of settings that only its owner can write."""
    path = tmp_path / "certjob.env"
    path.touch(mode=0o600)
    path.write_text("CERTJOB_DATABASE_URL=embedded\n")
    return path


def database_of(file: Path) -> str:
    return load_settings(str(file)).database_url.get_secret_value()


def test_settings_file_has_the_usual_syntax(environment: Environment, file: Path) -> None:
    """Comments, quotes, ``export``, a byte order mark, and variables of other programs. A set variable wins."""
    file.write_bytes(
        b"\xef\xbb\xbfCERTJOB_DATABASE_URL=embedded  # remark\r\n\r\n# production\r\nTIME_ZONE=nowhere\r\nDEBUG\r\n"
        b"export CERTJOB_TIME_ZONE='Europe/Berlin'\r\nCERTJOB_MAIL_FROM=\"Certjob <post@example.org>\"\r\n"
    )
    environment.set("CERTJOB_TIME_ZONE", "")

    settings = load_settings(str(file))

    assert (settings.time_zone, settings.mail_from) == ("Europe/Berlin", "Certjob <post@example.org>")
    assert database_of(file) == "embedded"
    environment.set("CERTJOB_DATABASE_URL", DATABASE_URL)
    assert database_of(file) == DATABASE_URL


@pytest.mark.parametrize("quote", ["", "'", '"'], ids=["no quotes", "single quotes", "double quotes"])
def test_settings_file_expands_no_variables(environment: Environment, file: Path, quote: str) -> None:
    """A password may contain a dollar sign, and no line may send another setting to a stranger."""
    environment.set("CERTJOB_DATABASE_URL", DATABASE_URL)
    written = "https://ping.example/${CERTJOB_DATABASE_URL}/$HOME/`id`/$(id)/%d/~"
    file.write_text(f"CERTJOB_PING_URL={quote}{written}{quote}\n")

    ping_url = load_settings(str(file)).ping_url

    assert ping_url is not None
    assert ping_url.get_secret_value() == written


@pytest.mark.parametrize("line", ["CERTJOB_PORTAL_KEY='{}", "CERTJOB_PORTAL_KEY", "'{}'x", "CERTJOB_X='a'{}'b'"])
def test_broken_line_of_a_settings_file_is_refused(environment: Environment, file: Path, line: str) -> None:
    """The error has its number. A skipped setting would be missing at night."""
    file.write_text("CERTJOB_DATABASE_URL=embedded\n\n\n" + line.format(SECRET) + "\n")

    step = "write NAME='value', or # before a comment"
    assert environment.complaint(file) == f"the settings file {file}, line 4: not a setting; {step}"


def test_unreadable_settings_file_is_refused(environment: Environment, file: Path, tmp_path: Path) -> None:
    """A command must not run without the settings that the file has."""
    (tmp_path / "ring").symlink_to("ring")
    file.write_bytes(f"CERTJOB_NOTIFY_PASSWORD={SECRET}å".encode("latin-1"))
    reasons: dict[str | Path, str] = {"nowhere/x.env": "No such file", "ring": "symbolic links", "\0": ""}
    reasons[file] = "it is not UTF-8 text"

    for path, why in reasons.items():
        error = environment.complaint(path)
        assert (why in error, error.rpartition("; ")[2]) == (True, "correct --env-file or CERTJOB_ENV_FILE"), error


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_settings_file_that_others_can_write_is_refused(environment: Environment, file: Path, mode: int) -> None:
    """A group counts as others. The folder of the file is not checked."""
    file.chmod(mode)
    assert f"may be written by others than its owner (mode {mode:03o}); only this" in environment.complaint(file)

    file.chmod(0o600)
    file.parent.chmod(0o777)
    assert database_of(file) == "embedded"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_settings_file_of_another_user_is_refused(environment: Environment, file: Path, tmp_path: Path) -> None:
    """The owner of the file counts, not the owner of a link to it."""
    link = tmp_path / "link"
    link.symlink_to(file)
    os.chown(link, 12345, -1, follow_symlinks=False)
    assert database_of(link) == "embedded"

    os.chown(file, 12345, -1)

    assert "link belongs to another user (id 12345)" in environment.complaint(link)
