"""Settings: required ones, rejected values, files of settings. No error shows a value."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from certjob.errors import ConfigurationError
from certjob.settings import Settings, load_settings

SECRET = "hunter2"
"""A part of the rejected values."""
DATABASE_URL = "postgresql://certjob@db.example/certjob"

Load = Callable[..., Settings]


@pytest.fixture(autouse=True)
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Load the settings of an environment that has a database and these variables only, without their prefix."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("CERTJOB_"):
            monkeypatch.delenv(name)

    def load(**variables: str) -> Settings:
        for name, value in ({"DATABASE_URL": DATABASE_URL} | variables).items():
            monkeypatch.setenv(f"CERTJOB_{name}", value)
        return load_settings()

    return load


def error_of(call: Callable[[], Settings]) -> str:
    """Return the error of a call, or of its settings about mail. Neither it nor its traceback has the secret."""
    with pytest.raises(ConfigurationError) as caught:
        raise call().mail_problem or AssertionError
    assert caught.value.exit_code == 2
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_settings_with_a_database_only_send_and_push_nothing(load: Load) -> None:
    """An empty variable counts as not set, so ``CERTJOB_PORTAL_URL=`` in a crontab switches the portal off."""
    settings = load(PORTAL_URL="", TIME_ZONE="")

    assert settings.database_url.get_secret_value() == DATABASE_URL
    assert settings.time_zone == "Europe/Oslo"
    assert (settings.portal_url, settings.portal_key, settings.notify_url, settings.ping_url) == (None,) * 4


def test_database_url_is_required(load: Load) -> None:
    """A cron job without the variable must fail, and not work on an empty database."""
    missing = "CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL or the word embedded"

    assert error_of(load_settings).startswith(missing)
    assert error_of(lambda: load(DATABASE_URL="")).startswith(missing)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DATABASE_URL", f"postgresql://u:{SECRET}@h/x\r", "ends in a carriage return; "),
        ("TIME_ZONE", f"../../{SECRET}", "no such time zone; use an IANA name such as Europe/Oslo"),
        ("TIME_ZONE", "Europe", "no such time zone"),
        ("PORTAL_URL", f"https:///{SECRET}", "must be a URL that starts with http: or https: and includes a host"),
        ("PORTAL_URL", f"https://portal.example:{SECRET}/", "is not a valid URL"),
        ("PORTAL_URL", f"http://localhost.evil.example/{SECRET}", "plain http:// is allowed only for loopback"),
        ("PORTAL_URL", f"https://{SECRET}@portal.example/", "must not contain a user name or password"),
        ("PORTAL_KEY", f"{SECRET}\n", "must be one word of printable ASCII"),
        ("NOTIFY_URL", f"mailto:{SECRET}@hlf.example", "must be a URL that starts with smtp: or smtps:"),
        ("NOTIFY_URL", f"smtp://:{SECRET}@mail.example", "use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"),
        ("APP_URL", f"javascript:{SECRET}", "must be a URL that starts with"),
        ("OPERATOR_ADDRESS", SECRET, "must be an e-mail address"),
        ("PING_URL", f"https://hc.example/{SECRET}?x=1", "must not contain ? or #"),
    ],
)
def test_wrong_value_is_rejected_by_the_name_of_its_variable(load: Load, name: str, value: str, reason: str) -> None:
    """The error has the reason, and not the value."""
    others = {"PORTAL_URL": "https://portal.example/sync", "PORTAL_KEY": "k-123"}

    error = error_of(lambda: load(**others | {name: value}))

    assert error.startswith(f"CERTJOB_{name}: ")
    assert reason in error


def test_setting_that_another_one_requires_is_named(load: Load) -> None:
    assert error_of(lambda: load(PORTAL_URL="https://portal.example")).startswith("CERTJOB_PORTAL_KEY is missing")
    assert error_of(lambda: load(PORTAL_URL="", NOTIFY_URL="SMTP://x")).startswith("CERTJOB_MAIL_FROM is missing")


def test_wrong_setting_about_mail_prevents_no_command(load: Load) -> None:
    """A hide must not wait for it. With another wrong setting, the error names both."""
    wrong = {"APP_URL": "app", "OPERATOR_ADDRESS": "drift"}

    settings, both = load(**wrong), error_of(lambda: load(**wrong, TIME_ZONE="Europe"))

    assert str(settings.mail_problem).count("CERTJOB_") == 2
    assert (settings.app_url, settings.operator_address) == (None, None)
    assert both.count("CERTJOB_") == 3


def test_plain_http_to_this_machine_is_allowed(load: Load) -> None:
    assert load(PORTAL_URL="http://[::1]:8000/", PORTAL_KEY="k-123").portal_url == "http://[::1]:8000/"
    assert load(PORTAL_URL="http://LOCALHOST/", PORTAL_KEY="k-123").portal_url == "http://LOCALHOST/"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of settings that only its owner can write."""
    path = tmp_path / "certjob.env"
    path.touch(mode=0o600)
    path.write_text("CERTJOB_DATABASE_URL=embedded\n")
    return path


def test_settings_file_has_the_usual_syntax(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, quotes, ``export``, a byte order mark, and variables of other programs. A set variable wins."""
    file.write_bytes(
        b"\xef\xbb\xbfCERTJOB_DATABASE_URL=embedded  # remark\r\n\r\n# production\r\nTIME_ZONE=nowhere\r\nDEBUG\r\n"
        b"export CERTJOB_TIME_ZONE='Europe/Berlin'\r\nCERTJOB_MAIL_FROM=\"Certjob <post@example.org>\"\r\n"
    )
    monkeypatch.setenv("CERTJOB_APP_URL", "https://app.example")

    settings = load_settings(str(file))

    assert settings.database_url.get_secret_value() == "embedded"
    assert (settings.time_zone, settings.mail_from) == ("Europe/Berlin", "Certjob <post@example.org>")
    assert settings.app_url == "https://app.example"
    monkeypatch.setenv("CERTJOB_DATABASE_URL", DATABASE_URL)
    assert load_settings(str(file)).database_url.get_secret_value() == DATABASE_URL


@pytest.mark.parametrize("quote", ["", "'", '"'], ids=["no quotes", "single quotes", "double quotes"])
def test_settings_file_expands_no_variables(file: Path, quote: str) -> None:
    """A password may contain a dollar sign, and no line may send another setting to a stranger."""
    written = "postgresql://h/${CERTJOB_PORTAL_KEY}/$HOME/`id`/$(id)/%d/~"
    file.write_text(f"CERTJOB_DATABASE_URL={quote}{written}{quote}\n")

    assert load_settings(str(file)).database_url.get_secret_value() == written


@pytest.mark.parametrize("line", ["CERTJOB_PORTAL_KEY='{}", "CERTJOB_PORTAL_KEY", "CERTJOB_X='a'{}'b'"])
def test_broken_line_of_a_settings_file_is_rejected(file: Path, line: str) -> None:
    """The error has its number. A skipped setting would be missing at night."""
    file.write_text("CERTJOB_DATABASE_URL=embedded\n\n\n" + line.format(SECRET) + "\n")

    error = error_of(lambda: load_settings(str(file)))

    assert error == f"the settings file {file}, line 4: not a setting; write NAME='value', or # before a comment"


def test_unreadable_settings_file_is_rejected(file: Path) -> None:
    """A command must not run without the settings that the file has."""
    file.write_bytes(f"CERTJOB_NOTIFY_PASSWORD={SECRET}å".encode("latin-1"))

    for path, reason in (("nowhere/x.env", "No such file"), (str(file), "it is not UTF-8 text")):
        error = error_of(lambda path=path: load_settings(path))  # type: ignore[misc]
        assert reason in error
        assert error.endswith("; correct --env-file or CERTJOB_ENV_FILE")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_settings_file_that_others_can_write_is_rejected(file: Path, mode: int) -> None:
    """A group counts as others."""
    file.chmod(mode)

    error = error_of(lambda: load_settings(str(file)))

    assert f"may be written by others than its owner (mode {mode:03o}); only this" in error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_settings_file_of_another_user_is_rejected(file: Path) -> None:
    os.chown(file, 12345, -1)

    assert "belongs to another user (id 12345)" in error_of(lambda: load_settings(str(file)))
