"""Settings: what is required, what is refused, and that an error never shows a value."""

import os
import time
import traceback
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from freezegun import freeze_time

from certjob.errors import ConfigurationError
from certjob.settings import Settings, load_settings

SECRET = "hunter2"
"""Planted into values; must never come out again."""

DATABASE = {"CERTJOB_DATABASE_URL": "postgresql://certjob@db.example/certjob"}
PORTAL = {"CERTJOB_PORTAL_URL": "https://portal.example/sync", "CERTJOB_PORTAL_KEY": "k-123"}
SENDER = {"CERTJOB_MAIL_FROM": "certjob@hlf.example"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Where ``set`` puts its variables; there is none of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("CERTJOB_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


pytestmark = pytest.mark.usefixtures("environment")


def load(environment: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Load the settings with these variables and a database."""
    for name, value in (DATABASE | variables).items():
        environment.setenv(name, value)
    return load_settings()


def complaint(environment: pytest.MonkeyPatch, **variables: str) -> str:
    """What is said about these variables; their values stand neither in it nor in a traceback."""
    with pytest.raises(ConfigurationError) as caught:
        load(environment, **variables)
    assert caught.value.exit_code == 2
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_database_is_enough(environment: pytest.MonkeyPatch) -> None:
    """Nothing is sent, pushed or told without being asked for, and nothing changes in the middle of a night."""
    settings = load(environment)

    assert settings.database_url.get_secret_value() == DATABASE["CERTJOB_DATABASE_URL"]
    assert settings.time_zone == "Europe/Oslo"
    asked_for = (settings.portal_url, settings.portal_key, settings.notify_url, settings.mail_from)
    assert (*asked_for, settings.ping_url, settings.metrics_file) == (None,) * 6
    assert (settings.portal_concurrency, settings.portal_attempts, settings.log_format) == (4, 3, "text")
    with pytest.raises(ValueError, match="frozen"):
        settings.time_zone = "UTC"  # type: ignore[misc]


def test_there_is_no_default_database(environment: pytest.MonkeyPatch) -> None:
    """A cron line with a forgotten variable must fail, not run on an empty database; an empty one is none."""
    for forgotten in ({}, {"CERTJOB_DATABASE_URL": ""}):
        for name, value in forgotten.items():
            environment.setenv(name, value)
        with pytest.raises(ConfigurationError) as caught:
            load_settings()

        assert str(caught.value) == (
            "CERTJOB_DATABASE_URL is not set; "
            "give a PostgreSQL URL or the word embedded, or name a file that does (--env-file)"
        )


def test_an_empty_variable_counts_as_not_set(environment: pytest.MonkeyPatch) -> None:
    """``CERTJOB_PORTAL_URL=`` in a crontab switches the portal off."""
    settings = load(environment, CERTJOB_PORTAL_URL="", CERTJOB_TIME_ZONE="", CERTJOB_PORTAL_CONCURRENCY="")

    assert (settings.portal_url, settings.time_zone, settings.portal_concurrency) == (None, "Europe/Oslo", 4)


@pytest.mark.parametrize(
    ("variables", "calls_per_second"),
    [
        (PORTAL, 15.0),
        (PORTAL | {"CERTJOB_PORTAL_RATE": "2.5"}, 2.5),
        (PORTAL | {"CERTJOB_PORTAL_RATE": "0"}, 0.0),
        (PORTAL | {"CERTJOB_PORTAL_URL": "http://[::1]:8000/"}, 0.0),
        (PORTAL | {"CERTJOB_PORTAL_URL": "http://localhost/", "CERTJOB_PORTAL_RATE": "3"}, 3.0),
    ],
)
def test_the_portal_is_spared_unless_it_is_on_this_machine(
    environment: pytest.MonkeyPatch, variables: dict[str, str], calls_per_second: float
) -> None:
    """15 calls a second, off on loopback, or what was asked for."""
    assert load(environment, **variables).portal_calls_per_second == calls_per_second


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
        ("TIME_ZONE", "/etc/localtime", NO_ZONE),
        ("TIME_ZONE", "Europe", NO_ZONE),
        ("PORTAL_URL", SECRET, A_URL),
        ("PORTAL_URL", f"https:///{SECRET}", A_URL),
        ("PORTAL_URL", f"ftp://{SECRET}.example/", A_URL),
        ("PORTAL_URL", f"https://{SECRET}.example:0/", A_URL),
        ("PORTAL_URL", f"https://portal.example:{SECRET}/", "is not a valid URL"),
        ("PORTAL_URL", f"https://[{SECRET}/", "is not a valid URL"),
        ("PORTAL_URL", f"HTTP://portal.example/?key={SECRET}", NO_HTTP),
        ("PORTAL_URL", f"http://localhost.evil.example/{SECRET}", NO_HTTP),
        ("PORTAL_URL", f"http://127.0.0.1.evil.example/{SECRET}", NO_HTTP),
        ("PORTAL_URL", f"https://certjob:{SECRET}@portal.example/", f"{NO_USER}; the function's key goes into"),
        ("PORTAL_URL", f"https://{SECRET}@portal.example/", NO_USER),
        ("PORTAL_KEY", f"{SECRET}\n", NOT_A_WORD),
        ("PORTAL_KEY", f"Bearer {SECRET}", NOT_A_WORD),
        ("PORTAL_KEY", f"nøkkel-{SECRET}", NOT_A_WORD),
        ("PORTAL_CONCURRENCY", SECRET, "Input should be"),
        ("PORTAL_CONCURRENCY", "0", "Input should be"),
        ("PORTAL_CONCURRENCY", "17", "Input should be"),
        ("PORTAL_RATE", "-1", "Input should be"),
        ("PORTAL_RATE", "nan", "Input should be"),
        ("PORTAL_ATTEMPTS", "0", "Input should be"),
        ("PORTAL_ATTEMPTS", "6", "Input should be"),
        ("LOG_FORMAT", SECRET, "Input should be"),
        ("NOTIFY_URL", f"mailto:{SECRET}@hlf.example", f"{A_URL} smtp: or smtps:"),
        ("NOTIFY_URL", "maildir:", A_URL),
        ("NOTIFY_URL", "smtp:", A_URL),
        ("NOTIFY_URL", f"http://push.example/?key={SECRET}", NO_HTTP),
        ("NOTIFY_URL", f"smtp://{SECRET}@mail.example", "use CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"),
        ("NOTIFY_URL", f"https://:{SECRET}@push.example", NO_USER),
        ("MAIL_HOURS", f"08:00-{SECRET}", "must be two times of the day"),
        ("APP_URL", f"javascript:{SECRET}", A_URL),
        ("PING_URL", f"http://hc.example/{SECRET}", NO_HTTP),
        ("PING_URL", f"https://hc.example/{SECRET}?x=1", "must hold no ? and no #"),
        ("ATTENTION_PING_URL", f"https://hc.example/{SECRET}#x", "must hold no ? and no #"),
        ("PING_URL", f"https://user:{SECRET}@hc.example/x", NO_USER),
        ("METRICS_FILE", f"/var/lib/{SECRET}.txt", "ends in .prom"),
        ("METRICS_FILE", "/var/.prom", "ends in .prom"),
        ("METRICS_FILE", f"{SECRET}.prom", "begins with /"),
        ("NOTIFY_PASSWORD", f"{SECRET}\r", "ends in a carriage return; "),
        ("DATABASE_URL", f"postgresql://u:{SECRET}@h/x\r", "ends in a carriage return; "),
    ],
)
def test_what_would_go_wrong_at_night_is_refused_by_name_and_without_its_value(
    environment: pytest.MonkeyPatch, variable: str, value: str, phrase: str
) -> None:
    """Before anything has begun."""
    said = complaint(environment, **PORTAL | {f"CERTJOB_{variable}": value})

    assert said.startswith(f"CERTJOB_{variable}: ")
    assert said.count(phrase) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CERTJOB_PORTAL_URL": PORTAL["CERTJOB_PORTAL_URL"]}, "CERTJOB_PORTAL_KEY is missing; set it to the key"),
        ({"CERTJOB_NOTIFY_URL": "SMTP://mail.example"}, "CERTJOB_MAIL_FROM is missing; set it to the address"),
        ({"CERTJOB_NOTIFY_URL": "smtps://mail.example"}, "CERTJOB_MAIL_FROM is missing"),
        (
            {"CERTJOB_NOTIFY_URL": "https://push.example/", "CERTJOB_NOTIFY_PASSWORD": f"{SECRET}\n"},
            f"CERTJOB_NOTIFY_PASSWORD: {NOT_A_WORD}",
        ),
        (
            dict.fromkeys(("CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"), f"https://hc.example/{SECRET}"),
            "CERTJOB_ATTENTION_PING_URL must be the address of a second check",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    environment: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    """The setting that is missing or wrong is the one that is named."""
    assert complaint(environment, **variables).startswith(said)


def test_every_wrong_variable_gets_its_own_clause(environment: pytest.MonkeyPatch) -> None:
    """Nobody wants to correct them one run at a time."""
    wrong = {"CERTJOB_DATABASE_URL": "", "CERTJOB_TIME_ZONE": SECRET, "CERTJOB_PORTAL_CONCURRENCY": "99"}

    text = complaint(environment, **wrong)

    assert [clause.split()[0].rstrip(":") for clause in text.replace("; CERTJOB", "\nCERTJOB").splitlines()] == [*wrong]


@pytest.mark.parametrize(
    "variables",
    [
        {"CERTJOB_PORTAL_URL": "http://LOCALHOST:8000/"},
        {"CERTJOB_PORTAL_URL": "http://127.0.0.1:8000/"},
        {"CERTJOB_PORTAL_URL": "http://[::1]:8000/"},
        {"CERTJOB_NOTIFY_URL": "http://localhost:8001/"},
        {"CERTJOB_NOTIFY_URL": "SMTPS://mail.example:465"},
        {"CERTJOB_NOTIFY_URL": "https://push.example/"},
        {"CERTJOB_NOTIFY_URL": "maildir:/var/mail/out"},
        {"CERTJOB_NOTIFY_URL": "smtp://mail.example", "CERTJOB_NOTIFY_PASSWORD": "blå bær"},
        {"CERTJOB_PORTAL_CONCURRENCY": "1"},
        {"CERTJOB_PORTAL_CONCURRENCY": "16"},
        {"CERTJOB_PORTAL_RATE": "0.0"},
        {"CERTJOB_PORTAL_ATTEMPTS": "1"},
        {"CERTJOB_PORTAL_ATTEMPTS": "5"},
        {"CERTJOB_LOG_FORMAT": "json"},
        {"CERTJOB_METRICS_FILE": "/var/lib/metrics/certjob.prom"},
        {"CERTJOB_APP_URL": "http://app.example"},
    ],
)
def test_what_works_is_taken_as_it_is(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Plain http to this machine, each kind of channel, the first and the last value of a range."""
    settings = load(environment, **PORTAL | SENDER | variables)

    for variable, value in variables.items():
        found = getattr(settings, variable.removeprefix("CERTJOB_").lower())
        assert str(getattr(found, "get_secret_value", lambda found=found: found)()) == value


# A file of settings, only if it is asked for.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the tests put theirs, so that nobody else may write it."""
    path = tmp_path / "certjob.env"
    path.touch(mode=0o600)
    path.write_text("CERTJOB_DATABASE_URL=embedded\n")
    return path


def refusal(file: Path | str) -> str:
    """What is said about this file."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(str(file))
    assert caught.value.exit_code == 2
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_file_is_read(file: Path) -> None:
    """Comments, quotes, ``export``, a byte order mark; variables of other programs in it do not matter."""
    file.write_bytes(
        b"\xef\xbb\xbfCERTJOB_DATABASE_URL=embedded  # remark\r\n\r\n# production\r\nTIME_ZONE=nowhere\r\nDEBUG\r\n"
        b"export CERTJOB_TIME_ZONE='Europe/Berlin'\r\nCERTJOB_MAIL_FROM=\"Certjob <post@example.org>\"\r\n"
    )

    settings = load_settings(str(file))

    assert settings.database_url.get_secret_value() == "embedded"
    assert (settings.time_zone, settings.mail_from) == ("Europe/Berlin", "Certjob <post@example.org>")


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_nothing_in_it_is_expanded(environment: pytest.MonkeyPatch, file: Path, quote: str) -> None:
    """A password may have a dollar sign; and no line can send another setting, or a variable, to a stranger."""
    environment.setenv("HOME", f"/home/{SECRET}")
    written = "https://ping.example/${CERTJOB_PORTAL_KEY}/$HOME/`id`/$(id)/%d/~"
    file.write_text(f"CERTJOB_DATABASE_URL=embedded\nCERTJOB_PING_URL={quote}{written}{quote}\n")

    ping_url = load_settings(str(file)).ping_url

    assert ping_url is not None
    assert ping_url.get_secret_value() == written


def test_a_real_variable_wins(environment: pytest.MonkeyPatch, file: Path) -> None:
    """What is typed on the command line is meant; an empty one counts as not set."""
    file.write_text("CERTJOB_DATABASE_URL=embedded\nCERTJOB_TIME_ZONE=Europe/Berlin\n")
    environment.setenv("CERTJOB_DATABASE_URL", DATABASE["CERTJOB_DATABASE_URL"])
    environment.setenv("CERTJOB_TIME_ZONE", "")

    settings = load_settings(str(file))

    assert settings.database_url.get_secret_value() == DATABASE["CERTJOB_DATABASE_URL"]
    assert settings.time_zone == "Europe/Berlin"


def test_an_error_in_it_is_told_like_any_other(file: Path) -> None:
    """Variable, not value."""
    file.write_text(f"CERTJOB_DATABASE_URL=embedded\nCERTJOB_TIME_ZONE={SECRET}\n")

    assert refusal(file).startswith("CERTJOB_TIME_ZONE: ")


@pytest.mark.parametrize("line", ["CERTJOB_PORTAL_KEY='{}", "CERTJOB_PORTAL_KEY", "'{}'x", "CERTJOB_X='a'{}'b'"])
def test_a_line_that_is_no_setting_is_refused_by_its_number(file: Path, line: str) -> None:
    """A setting that is passed over unsaid would be missed in the night; what the line holds is not shown."""
    file.write_text("CERTJOB_DATABASE_URL=embedded\n\n\n" + line.format(SECRET) + "\n")

    assert refusal(file) == f"the settings file {file}, line 4: not a setting; write NAME='value', or # before a remark"


def test_a_file_that_cannot_be_read_is_refused(file: Path, tmp_path: Path) -> None:
    """It was asked for, so it holds something."""
    (tmp_path / "ring").symlink_to("ring")
    file.write_bytes(f"CERTJOB_NOTIFY_PASSWORD={SECRET}å".encode("latin-1"))

    for path, why in (
        ("nowhere/x.env", "No such file or directory"),
        (".", "Is a directory"),
        ("ring", "symbolic links"),
        ("\0", ""),
        (file, "it is not UTF-8 text"),
    ):
        said = refusal(path)
        assert why in said
        assert said.endswith("; correct --env-file or CERTJOB_ENV_FILE")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_one_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    """A group is others, too."""
    file.chmod(mode)

    assert f"may be written by others than its owner (mode {mode:03o}); nobody but" in refusal(file)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_one_in_a_folder_that_others_may_write_is_refused_but_for_a_sticky_one(
    file: Path, tmp_path: Path, mode: int
) -> None:
    """They can put another in its place, further up, too; not in /tmp, nor among the secrets of Kubernetes."""
    folder = tmp_path / "open"
    (folder / "inside").mkdir(parents=True)
    file = file.rename(folder / "inside" / "certjob.env")
    folder.chmod(mode)

    assert f"{folder} may be written by others" in refusal(file)

    folder.chmod(0o1777)
    assert load_settings(str(file)).database_url.get_secret_value() == "embedded"


def test_a_link_is_followed_and_all_that_it_leads_through_is_looked_at(file: Path, tmp_path: Path) -> None:
    """Where the link lies, and where the file lies."""
    (tmp_path / "safe").symlink_to(file)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(file)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "detour").symlink_to("open/link")

    assert load_settings(str(tmp_path / "safe")).database_url.get_secret_value() == "embedded"
    assert f"{tmp_path}/open may be written by others" in refusal(tmp_path / "detour")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_one_of_another_user_is_refused(tmp_path: Path, what: str) -> None:
    """Of whoever owns the file, the folder that it lies in, or the link that leads to it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "certjob.env"
    file.touch(mode=0o600)
    link = tmp_path / "link"
    link.symlink_to(file)
    os.chown({"file": file, "folder": folder, "link": link}[what], 12345, -1, follow_symlinks=False)

    assert f"{what if what != 'file' else 'certjob.env'} belongs to another user (id 12345)" in refusal(link)


# The calendar day where the programme lives, whatever the machine's own zone.


@pytest.fixture
def machine_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own clock shows New York."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("machine_elsewhere")
@pytest.mark.parametrize(
    ("instant", "zone", "today"),
    [
        ("2026-03-10 22:59:59", "Europe/Oslo", date(2026, 3, 10)),
        ("2026-03-10 23:00:00", "Europe/Oslo", date(2026, 3, 11)),
        ("2026-07-10 21:59:59", "Europe/Oslo", date(2026, 7, 10)),
        ("2026-07-10 22:00:00", "Europe/Oslo", date(2026, 7, 11)),
        ("2026-03-29 21:59:59", "Europe/Oslo", date(2026, 3, 29)),  # a day of 23 hours
        ("2026-10-24 22:00:00", "Europe/Oslo", date(2026, 10, 25)),  # and one of 25
        ("2026-10-25 22:59:59", "Europe/Oslo", date(2026, 10, 25)),
        ("2028-02-29 22:58:00", "Europe/Oslo", date(2028, 2, 29)),
        ("2026-03-10 10:30:00", "Pacific/Kiritimati", date(2026, 3, 11)),
        ("2026-03-10 10:30:00", "Pacific/Pago_Pago", date(2026, 3, 9)),
    ],
)
def test_a_day_begins_where_the_programme_lives(
    environment: pytest.MonkeyPatch, instant: str, zone: str, today: date
) -> None:
    """In Oslo one hour before that of UTC in winter, two in summer."""
    settings = load(environment, CERTJOB_TIME_ZONE=zone)

    with freeze_time(instant):
        assert settings.today == today
