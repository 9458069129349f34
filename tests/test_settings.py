"""Settings: what is required, what is refused, and that an error never shows a value."""

import os
import traceback
from pathlib import Path

import pytest

from certjob.errors import ConfigurationError
from certjob.settings import Settings, load_settings

SECRET = "hunter2"
"""Planted into values; must never come out again."""

DATABASE_URL = "postgresql://certjob@db.example/certjob"
PORTAL = {"PORTAL_URL": "https://portal.example/sync", "PORTAL_KEY": "k-123"}


class Environment:
    """Sets ``CERTJOB_*`` variables, which are named without their prefix; there is none of whoever runs the tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set = monkeypatch.setenv
        for name in list(os.environ):
            if name.upper().startswith("CERTJOB_"):
                monkeypatch.delenv(name)

    def load(self, **variables: str) -> Settings:
        """The settings with these variables and a database."""
        for name, value in ({"DATABASE_URL": DATABASE_URL} | variables).items():
            self.set(f"CERTJOB_{name}", value)
        return load_settings()

    def complaint(self, file: Path | str | None = None, **variables: str) -> str:
        """What is said about these variables, or a file of them; no value stands in it, nor in a traceback."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings(str(file)) if file else self.load(**variables)
        assert caught.value.exit_code == 2
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    monkeypatch.chdir(tmp_path)
    return Environment(monkeypatch)


def test_a_database_is_enough(environment: Environment) -> None:
    """Nothing is sent, pushed or told without being asked for, and nothing changes in the middle of a night.

    An empty variable counts as not set: ``CERTJOB_PORTAL_URL=`` in a crontab switches the portal off.
    """
    for variables in ({}, dict.fromkeys(("PORTAL_URL", "TIME_ZONE", "LOG_FORMAT"), "")):
        settings = environment.load(**variables)

        assert settings.database_url.get_secret_value() == DATABASE_URL
        assert settings.time_zone == "Europe/Oslo"
        asked_for = (settings.portal_url, settings.portal_key, settings.notify_url, settings.mail_from)
        assert (*asked_for, settings.ping_url) == (None,) * 5
        assert settings.log_format == "text"
    with pytest.raises(ValueError, match="frozen"):
        settings.time_zone = "UTC"  # type: ignore[misc]


def test_there_is_no_default_database(environment: Environment) -> None:
    """A cron line with a forgotten variable must fail, not run on an empty database; an empty one is none."""
    said = "CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL or the word embedded"
    with pytest.raises(ConfigurationError, match=said):
        load_settings()

    assert environment.complaint(DATABASE_URL="").startswith(said)


NO_ZONE = "no such time zone; use an IANA name such as Europe/Oslo"
NO_HTTP = "plain http:// is refused"
NO_USER = "must hold no user or password"
NOT_A_WORD = "must be one word of printable ASCII"
A_URL = "must be a URL that starts with"


@pytest.mark.parametrize(
    ("variable", "value", "phrase"),
    [
        ("TIME_ZONE", f"Europe/{SECRET}", NO_ZONE),
        ("TIME_ZONE", f"../../{SECRET}", NO_ZONE),
        ("TIME_ZONE", "Europe", NO_ZONE),
        ("PORTAL_URL", f"https:///{SECRET}", A_URL),
        ("PORTAL_URL", f"ftp://{SECRET}.example/", A_URL),
        ("PORTAL_URL", f"https://{SECRET}.example:0/", A_URL),
        ("PORTAL_URL", f"https://portal.example:{SECRET}/", "is not a valid URL"),
        ("PORTAL_URL", f"HTTP://portal.example/?key={SECRET}", NO_HTTP),
        ("PORTAL_URL", f"http://localhost.evil.example/{SECRET}", NO_HTTP),
        ("PORTAL_URL", f"https://{SECRET}@portal.example/", f"{NO_USER}; the function's key goes into"),
        ("PORTAL_KEY", f"{SECRET}\n", NOT_A_WORD),
        ("PORTAL_KEY", f"nøkkel-{SECRET}", NOT_A_WORD),
        ("LOG_FORMAT", SECRET, "Input should be"),
        ("NOTIFY_URL", f"mailto:{SECRET}@hlf.example", f"{A_URL} smtp: or smtps:"),
        ("NOTIFY_URL", "maildir:", A_URL),
        ("NOTIFY_URL", "smtp:", A_URL),
        ("NOTIFY_URL", f"http://push.example/?key={SECRET}", NO_HTTP),
        ("NOTIFY_URL", f"https://:{SECRET}@push.example", "use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"),
        ("MAIL_HOURS", f"08:00-{SECRET}", "must be two times of the day"),
        ("APP_URL", f"javascript:{SECRET}", A_URL),
        ("OPERATOR_ADDRESS", SECRET, "must be an e-mail address"),
        ("PING_URL", f"http://hc.example/{SECRET}", NO_HTTP),
        ("PING_URL", f"https://hc.example/{SECRET}?x=1", "must hold no ? and no #"),
        ("PING_URL", f"https://hc.example/{SECRET}#x", "must hold no ? and no #"),
        ("DATABASE_URL", f"postgresql://u:{SECRET}@h/x\r", "ends in a carriage return; "),
    ],
)
def test_what_would_go_wrong_at_night_is_refused_by_name_and_without_its_value(
    environment: Environment, variable: str, value: str, phrase: str
) -> None:
    """Before anything has begun."""
    said = environment.complaint(**PORTAL | {variable: value})

    assert said.startswith(f"CERTJOB_{variable}: ")
    assert said.count(phrase) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PORTAL_URL": PORTAL["PORTAL_URL"]}, "CERTJOB_PORTAL_KEY is missing; set it to the key"),
        ({"NOTIFY_URL": "SMTP://mail.example"}, "CERTJOB_MAIL_FROM is missing; set it to the address"),
        ({"NOTIFY_URL": "smtps://mail.example"}, "CERTJOB_MAIL_FROM is missing"),
        (
            {"NOTIFY_URL": "https://push.example/", "NOTIFY_PASSWORD": f"{SECRET}\n"},
            f"CERTJOB_NOTIFY_PASSWORD: {NOT_A_WORD}",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(environment: Environment, variables: dict[str, str], said: str) -> None:
    """The setting that is missing or wrong is the one that is named."""
    assert environment.complaint(**variables).startswith(said)


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
)
def test_what_works_is_taken_as_it_is(environment: Environment, variables: dict[str, str]) -> None:
    """Plain http to this machine, each kind of channel, the first and the last value of a range."""
    settings = environment.load(**PORTAL | {"MAIL_FROM": "certjob@hlf.example"} | variables)

    for variable, value in variables.items():
        found = getattr(settings, variable.lower())
        assert str(getattr(found, "get_secret_value", lambda found=found: found)()) == value


# A file of settings, only if it is asked for.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the tests put theirs, so that nobody else may write it."""
    path = tmp_path / "certjob.env"
    path.touch(mode=0o600)
    path.write_text("CERTJOB_DATABASE_URL=embedded\n")
    return path


def database_of(file: Path) -> str:
    return load_settings(str(file)).database_url.get_secret_value()


def test_a_file_is_read_as_it_stands_there_and_a_real_variable_wins(environment: Environment, file: Path) -> None:
    """Comments, quotes, ``export``, a byte order mark; variables of other programs in it do not matter.

    A password may have a dollar sign; and no line can send another setting, or a variable, to a stranger.
    What is typed on the command line is meant; an empty one counts as not set.
    """
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

    environment.set("HOME", f"/home/{SECRET}")
    written = "https://ping.example/${CERTJOB_PORTAL_KEY}/$HOME/`id`/$(id)/%d/~"
    for quote in ("", "'", '"'):
        file.write_text(f"CERTJOB_PING_URL={quote}{written}{quote}\n")
        ping_url = load_settings(str(file)).ping_url
        assert ping_url is not None
        assert ping_url.get_secret_value() == written


def test_a_line_that_is_no_setting_is_refused_by_its_number(environment: Environment, file: Path) -> None:
    """A setting that is passed over unsaid would be missed in the night; what the line holds is not shown."""
    what_to_do = "not a setting; write NAME='value', or # before a remark"
    for line in ("CERTJOB_PORTAL_KEY='{}", "CERTJOB_PORTAL_KEY", "'{}'x", "CERTJOB_X='a'{}'b'"):
        file.write_text("CERTJOB_DATABASE_URL=embedded\n\n\n" + line.format(SECRET) + "\n")

        assert environment.complaint(file) == f"the settings file {file}, line 4: {what_to_do}"


def test_a_file_that_cannot_be_read_is_refused(environment: Environment, file: Path, tmp_path: Path) -> None:
    """It was asked for, so it holds something. What is wrong in it is told like any other."""
    (tmp_path / "ring").symlink_to("ring")
    file.write_bytes(f"CERTJOB_NOTIFY_PASSWORD={SECRET}å".encode("latin-1"))

    for path, why in (
        ("nowhere/x.env", "No such file or directory"),
        ("ring", "symbolic links"),
        ("\0", ""),
        (file, "it is not UTF-8 text"),
    ):
        said = environment.complaint(path)
        assert (why in said, said.rpartition("; ")[2]) == (True, "correct --env-file or CERTJOB_ENV_FILE"), said
    file.write_text(f"CERTJOB_DATABASE_URL=embedded\nCERTJOB_TIME_ZONE={SECRET}\n")
    assert environment.complaint(file).startswith("CERTJOB_TIME_ZONE: ")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_settings_file_that_others_can_write_is_refused(environment: Environment, file: Path, mode: int) -> None:
    """A group counts as others; the folder that holds the file is not checked."""
    file.chmod(mode)
    assert f"may be written by others than its owner (mode {mode:03o}); only this" in environment.complaint(file)

    file.chmod(0o600)
    file.parent.chmod(0o777)
    assert database_of(file) == "embedded"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_settings_file_of_another_user_is_refused(environment: Environment, file: Path, tmp_path: Path) -> None:
    """The owner of the file counts, not that of a link to it."""
    link = tmp_path / "link"
    link.symlink_to(file)
    os.chown(link, 12345, -1, follow_symlinks=False)
    assert database_of(link) == "embedded"

    os.chown(file, 12345, -1)

    assert "link belongs to another user (id 12345)" in environment.complaint(link)
