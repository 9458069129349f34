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


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("CERTJOB_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where ``set`` puts its variables."""
    return monkeypatch


def load(environment: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Load the settings with these variables and a database."""
    for name, value in (DATABASE | variables).items():
        environment.setenv(name, value)
    return load_settings()


def complaint(environment: pytest.MonkeyPatch, **variables: str) -> str:
    """What is said about these variables."""
    with pytest.raises(ConfigurationError) as caught:
        load(environment, **variables)
    assert caught.value.exit_code == 2
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


class TestDefaults:
    """What a minimal installation gets."""

    def test_a_database_is_enough(self, environment: pytest.MonkeyPatch) -> None:
        """Nothing is sent or pushed without being asked for."""
        settings = load(environment)

        assert settings.database_url.get_secret_value() == DATABASE["CERTJOB_DATABASE_URL"]
        assert settings.time_zone == "Europe/Oslo"
        assert (settings.portal_url, settings.portal_key, settings.notify_url, settings.mail_from) == (None,) * 4
        assert (settings.portal_concurrency, settings.portal_attempts) == (4, 3)
        assert settings.log_format == "text"

    def test_there_is_no_default_database(self) -> None:
        """A cron line with a forgotten variable must fail, not run on an empty database."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings()

        assert str(caught.value) == (
            "CERTJOB_DATABASE_URL is not set; "
            "give a PostgreSQL URL or the word embedded, or name a file that does (--env-file)"
        )

    def test_an_empty_variable_counts_as_not_set(self, environment: pytest.MonkeyPatch) -> None:
        """``CERTJOB_PORTAL_URL=`` in a crontab switches the portal off; an empty database is none."""
        settings = load(environment, CERTJOB_PORTAL_URL="", CERTJOB_TIME_ZONE="", CERTJOB_PORTAL_CONCURRENCY="")

        assert (settings.portal_url, settings.time_zone, settings.portal_concurrency) == (None, "Europe/Oslo", 4)
        assert complaint(environment, CERTJOB_DATABASE_URL="").startswith("CERTJOB_DATABASE_URL is not set")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("CERTJOB_DATABASE_URL", DATABASE["CERTJOB_DATABASE_URL"]),
            ("CERTJOB_PORTAL_RATE", "5"),
            ("CERTJOB_NOTIFY_URL", "maildir:/srv/mail"),
            ("CERTJOB_NOTIFY_PASSWORD", SECRET),
            ("CERTJOB_TIME_ZONE", "Europe/Oslo"),
        ],
    )
    def test_a_line_end_from_windows_is_named(self, environment: pytest.MonkeyPatch, name: str, value: str) -> None:
        """The shell that reads certjob.env keeps it: no database would be found whose name ends in it, and so on."""
        said = complaint(environment, **{name: f"{value}\r"})

        assert said.startswith(f"{name}: ends in a carriage return; ")
        assert said.count("carriage return") == 1

    def test_they_stay_as_they_were_read(self, environment: pytest.MonkeyPatch) -> None:
        """No code may change its mind about them in the middle of a night."""
        settings = load(environment)

        with pytest.raises(ValueError, match="frozen"):
            settings.time_zone = "UTC"  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("variables", "calls_per_second"),
        [
            (PORTAL, 15.0),
            (PORTAL | {"CERTJOB_PORTAL_RATE": "2.5"}, 2.5),
            (PORTAL | {"CERTJOB_PORTAL_RATE": "0"}, 0.0),
            (PORTAL | {"CERTJOB_PORTAL_URL": "http://127.0.0.1:8000/"}, 0.0),
            (PORTAL | {"CERTJOB_PORTAL_URL": "http://[::1]:8000/"}, 0.0),
            (PORTAL | {"CERTJOB_PORTAL_URL": "http://localhost/", "CERTJOB_PORTAL_RATE": "3"}, 3.0),
        ],
    )
    def test_the_portal_is_spared_unless_it_is_on_this_machine(
        self, environment: pytest.MonkeyPatch, variables: dict[str, str], calls_per_second: float
    ) -> None:
        """15 calls a second, off on loopback, or what was asked for."""
        assert load(environment, **variables).portal_calls_per_second == calls_per_second


class TestSecrets:
    """Passwords and keys come out nowhere."""

    def test_they_do_not_show_in_a_print_of_the_settings(self, environment: pytest.MonkeyPatch) -> None:
        """Somebody will log them one day."""
        settings = load(
            environment,
            **PORTAL | {"CERTJOB_PORTAL_KEY": SECRET},
            CERTJOB_DATABASE_URL=f"postgresql://certjob:{SECRET}@db.example/certjob",
            CERTJOB_NOTIFY_URL="smtps://mail.example",
            CERTJOB_NOTIFY_PASSWORD=SECRET,
            CERTJOB_MAIL_FROM="certjob@hlf.example",
        )

        assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("CERTJOB_TIME_ZONE", f"Europe/{SECRET}"),
            ("CERTJOB_TIME_ZONE", f"../../{SECRET}"),
            ("CERTJOB_PORTAL_URL", SECRET),
            ("CERTJOB_PORTAL_URL", f"https://portal.example:{SECRET}/"),
            ("CERTJOB_PORTAL_URL", f"https://[{SECRET}/"),
            ("CERTJOB_PORTAL_URL", f"ftp://{SECRET}.example/"),
            ("CERTJOB_PORTAL_URL", f"http://portal.example/?key={SECRET}"),
            ("CERTJOB_PORTAL_URL", f"https://certjob:{SECRET}@portal.example/"),
            ("CERTJOB_PORTAL_URL", f"https://{SECRET}@portal.example/"),
            ("CERTJOB_PORTAL_KEY", f"{SECRET}\n"),
            ("CERTJOB_PORTAL_KEY", f"Bearer {SECRET}"),
            ("CERTJOB_PORTAL_KEY", f"nøkkel-{SECRET}"),
            ("CERTJOB_PORTAL_CONCURRENCY", SECRET),
            ("CERTJOB_PORTAL_RATE", SECRET),
            ("CERTJOB_PORTAL_ATTEMPTS", SECRET),
            ("CERTJOB_NOTIFY_URL", SECRET),
            ("CERTJOB_NOTIFY_URL", f"smtp://mail.example:{SECRET}"),
            ("CERTJOB_NOTIFY_URL", f"smtps://certjob:{SECRET}@mail.example"),
            ("CERTJOB_NOTIFY_URL", f"http://push.example/?key={SECRET}"),
            ("CERTJOB_LOG_FORMAT", SECRET),
        ],
    )
    def test_an_error_names_the_variable_and_never_the_value(
        self, environment: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        """Neither in the message nor in the traceback."""
        assert complaint(environment, **{variable: value}).startswith(f"{variable}: ")

    def test_every_wrong_variable_gets_its_own_clause(self, environment: pytest.MonkeyPatch) -> None:
        """Nobody wants to correct them one run at a time."""
        text = complaint(
            environment,
            CERTJOB_DATABASE_URL="",
            CERTJOB_TIME_ZONE=SECRET,
            CERTJOB_PORTAL_CONCURRENCY="99",
            CERTJOB_NOTIFY_URL=SECRET,
        )

        assert [clause.split()[0].rstrip(":") for clause in text.split("; CERTJOB")] == [
            "CERTJOB_DATABASE_URL",
            "_TIME_ZONE",
            "_PORTAL_CONCURRENCY",
            "_NOTIFY_URL",
        ]


class TestRefusals:
    """What would go wrong at night is said in the evening."""

    @pytest.mark.parametrize("zone", ["Europe/Olso", "Oslo", "CET+1", "../../etc/passwd", "/etc/localtime", "Europe"])
    def test_an_unknown_time_zone(self, environment: pytest.MonkeyPatch, zone: str) -> None:
        """A wrong zone decides wrongly what day it is."""
        assert complaint(environment, CERTJOB_TIME_ZONE=zone) == (
            "CERTJOB_TIME_ZONE: no such time zone; use an IANA name such as Europe/Oslo"
        )

    @pytest.mark.parametrize("variable", ["CERTJOB_PORTAL_URL", "CERTJOB_NOTIFY_URL"])
    @pytest.mark.parametrize(
        "url",
        [
            "http://portal.example/sync",
            "HTTP://portal.example/sync",
            "http://localhost.evil.example/",
            "http://127.0.0.1.evil.example/",
            "http://10.0.0.1/",
        ],
    )
    def test_plain_http_to_another_machine(self, environment: pytest.MonkeyPatch, variable: str, url: str) -> None:
        """The key would travel in the open."""
        text = complaint(environment, **PORTAL | {variable: url})

        assert text.startswith(f"{variable}: plain http:// is refused")
        assert "https://" in text

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
    def test_but_not_plain_http_to_this_machine(self, environment: pytest.MonkeyPatch, host: str) -> None:
        """The demo and the tests."""
        settings = load(
            environment,
            **PORTAL | {"CERTJOB_PORTAL_URL": f"http://{host}:8000/"},
            CERTJOB_NOTIFY_URL=f"http://{host}:8001/",
        )

        assert settings.portal_url == f"http://{host}:8000/"

    @pytest.mark.parametrize(
        "url", ["portal.example/sync", "https:///sync", "https://portal.example:0/", "https://portal.example:99999/"]
    )
    def test_a_url_that_leads_nowhere(self, environment: pytest.MonkeyPatch, url: str) -> None:
        """Without a scheme, a host, or a possible port."""
        assert complaint(environment, CERTJOB_PORTAL_URL=url).startswith("CERTJOB_PORTAL_URL: ")

    @pytest.mark.parametrize("url", ["mailto:kari@hlf.example", "maildir:", "smtp:", "imap://mail.example"])
    def test_a_channel_that_does_not_exist(self, environment: pytest.MonkeyPatch, url: str) -> None:
        """The message lists those that do."""
        text = complaint(environment, CERTJOB_NOTIFY_URL=url)

        assert text.startswith("CERTJOB_NOTIFY_URL: must be a URL that starts with smtp: or smtps:")

    @pytest.mark.parametrize(
        "url", ["smtp://mail.example", "SMTPS://mail.example:465", "https://push.example/", "maildir:/var/mail/out"]
    )
    def test_but_not_a_channel_that_exists(self, environment: pytest.MonkeyPatch, url: str) -> None:
        """SMTP, a webhook, a folder."""
        settings = load(environment, CERTJOB_NOTIFY_URL=url, CERTJOB_MAIL_FROM="certjob@hlf.example")

        assert settings.notify_url is not None
        assert settings.notify_url.get_secret_value() == url

    @pytest.mark.parametrize(
        "url", ["smtps://kari:pw@mail.example", "smtp://kari@mail.example", "https://:pw@push.example"]
    )
    def test_credentials_in_the_notify_url(self, environment: pytest.MonkeyPatch, url: str) -> None:
        """They have variables of their own, which are never printed."""
        text = complaint(environment, CERTJOB_NOTIFY_URL=url, CERTJOB_MAIL_FROM="certjob@hlf.example")

        assert "CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD" in text

    def test_credentials_in_the_portal_url(self, environment: pytest.MonkeyPatch) -> None:
        """That URL is shown and logged; the key is not."""
        text = complaint(environment, **PORTAL | {"CERTJOB_PORTAL_URL": "https://kari:pw@portal.example/"})

        assert "CERTJOB_PORTAL_KEY" in text

    def test_a_portal_without_its_key(self, environment: pytest.MonkeyPatch) -> None:
        """Every call would be a 401."""
        text = complaint(environment, CERTJOB_PORTAL_URL=PORTAL["CERTJOB_PORTAL_URL"])

        assert text == "CERTJOB_PORTAL_KEY is missing; CERTJOB_PORTAL_URL needs it"

    @pytest.mark.parametrize("url", ["smtp://mail.example", "smtps://mail.example", "SMTP://mail.example"])
    def test_mail_without_a_sender(self, environment: pytest.MonkeyPatch, url: str) -> None:
        """Every message would be refused."""
        assert complaint(environment, CERTJOB_NOTIFY_URL=url) == (
            "CERTJOB_MAIL_FROM is missing; mail needs a sender address"
        )

    @pytest.mark.parametrize("key", ["two words", "key\n", "\tkey", "nøkkel", "key\x7f"])
    def test_a_key_that_no_header_can_carry(self, environment: pytest.MonkeyPatch, key: str) -> None:
        """A line break from ``$(cat key.txt)`` or a paste; the HTTP client would quote the key in its complaint."""
        assert complaint(environment, **PORTAL | {"CERTJOB_PORTAL_KEY": key}).startswith("CERTJOB_PORTAL_KEY: must be")
        environment.setenv("CERTJOB_PORTAL_KEY", "fine")
        assert complaint(
            environment, CERTJOB_NOTIFY_URL="https://push.example/", CERTJOB_NOTIFY_PASSWORD=key
        ).startswith("CERTJOB_NOTIFY_PASSWORD: must be")

    def test_but_not_a_mail_password_with_spaces_and_letters(self, environment: pytest.MonkeyPatch) -> None:
        """It stands in no header."""
        settings = load(
            environment,
            CERTJOB_NOTIFY_URL="smtps://mail.example",
            CERTJOB_MAIL_FROM="certjob@hlf.example",
            CERTJOB_NOTIFY_PASSWORD="blå bær",
        )

        assert settings.notify_password is not None
        assert settings.notify_password.get_secret_value() == "blå bær"

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("CERTJOB_PORTAL_CONCURRENCY", "0"),
            ("CERTJOB_PORTAL_CONCURRENCY", "17"),
            ("CERTJOB_PORTAL_CONCURRENCY", "2.5"),
            ("CERTJOB_PORTAL_RATE", "-1"),
            ("CERTJOB_PORTAL_RATE", "nan"),
            ("CERTJOB_PORTAL_ATTEMPTS", "0"),
            ("CERTJOB_PORTAL_ATTEMPTS", "6"),
            ("CERTJOB_LOG_FORMAT", "xml"),
        ],
    )
    def test_a_value_out_of_its_bounds(self, environment: pytest.MonkeyPatch, variable: str, value: str) -> None:
        """The message says what is allowed."""
        text = complaint(environment, **{variable: value})

        assert text.startswith(f"{variable}: Input should be ")

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("CERTJOB_PORTAL_CONCURRENCY", "1"),
            ("CERTJOB_PORTAL_CONCURRENCY", "16"),
            ("CERTJOB_PORTAL_RATE", "0"),
            ("CERTJOB_PORTAL_ATTEMPTS", "1"),
            ("CERTJOB_PORTAL_ATTEMPTS", "5"),
            ("CERTJOB_LOG_FORMAT", "json"),
        ],
    )
    def test_but_not_a_value_on_its_bounds(self, environment: pytest.MonkeyPatch, variable: str, value: str) -> None:
        """The first and the last are allowed."""
        settings = load(environment, **{variable: value})

        assert str(getattr(settings, variable.removeprefix("CERTJOB_").lower())).removesuffix(".0") == value


class TestEnvFile:
    """A file of settings, only if it is asked for."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """Where the tests put theirs, so that nobody else may write it."""
        path = tmp_path / "certjob.env"
        path.touch(mode=0o600)
        return path

    def refusal(self, file: Path | str) -> str:
        """What is said about this file."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings(str(file))
        assert caught.value.exit_code == 2
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)

    def test_it_is_read(self, file: Path) -> None:
        """Comments, quotes, ``export`` and Windows' line ends as usual; a byte order mark does not matter."""
        file.write_bytes(
            b"\xef\xbb\xbfCERTJOB_DATABASE_URL=embedded  # remark\r\n\r\n# production\r\n"
            b"export CERTJOB_TIME_ZONE='Europe/Berlin'\r\nCERTJOB_MAIL_FROM=\"Certjob <post@example.org>\"\r\n"
        )

        settings = load_settings(str(file))

        assert settings.database_url.get_secret_value() == "embedded"
        assert settings.time_zone == "Europe/Berlin"
        assert settings.mail_from == "Certjob <post@example.org>"

    @pytest.mark.parametrize("quote", ["", "'", '"'])
    def test_nothing_in_it_is_expanded(self, environment: pytest.MonkeyPatch, file: Path, quote: str) -> None:
        """A password may have a dollar sign; and no line can send another setting, or a variable, to a stranger."""
        environment.setenv("HOME", f"/home/{SECRET}")
        written = "https://ping.example/${CERTJOB_PORTAL_KEY}/$HOME/`id`/$(id)/%d/~"
        file.write_text(f"CERTJOB_DATABASE_URL=embedded\nCERTJOB_PING_URL={quote}{written}{quote}\n")

        ping_url = load_settings(str(file)).ping_url

        assert ping_url is not None
        assert ping_url.get_secret_value() == written

    def test_a_real_variable_wins(self, environment: pytest.MonkeyPatch, file: Path) -> None:
        """What is typed on the command line is meant; an empty one counts as not set."""
        file.write_text("CERTJOB_DATABASE_URL=embedded\nCERTJOB_TIME_ZONE=Europe/Berlin\n")
        environment.setenv("CERTJOB_DATABASE_URL", DATABASE["CERTJOB_DATABASE_URL"])
        environment.setenv("CERTJOB_TIME_ZONE", "")

        settings = load_settings(str(file))

        assert settings.database_url.get_secret_value() == DATABASE["CERTJOB_DATABASE_URL"]
        assert settings.time_zone == "Europe/Berlin"

    def test_variables_of_other_programs_in_it_do_not_matter(self, file: Path) -> None:
        """The file is shared with the app."""
        file.write_text("CERTJOB_DATABASE_URL=embedded\nSUPABASE_URL=x\nTIME_ZONE=nowhere\nDEBUG\n")

        assert load_settings(str(file)).time_zone == "Europe/Oslo"

    def test_an_error_in_it_is_told_like_any_other(self, file: Path) -> None:
        """Variable, not value."""
        file.write_text(f"CERTJOB_DATABASE_URL=embedded\nCERTJOB_TIME_ZONE={SECRET}\n")

        assert self.refusal(file).startswith("CERTJOB_TIME_ZONE: ")

    @pytest.mark.parametrize("line", ["CERTJOB_PORTAL_KEY='{}", "CERTJOB_PORTAL_KEY", "'{}'x", "CERTJOB_X='a'{}'b'"])
    def test_a_line_that_is_no_setting_is_refused_by_its_number(self, file: Path, line: str) -> None:
        """A setting that is passed over unsaid would be missed in the night; what the line holds is not shown."""
        file.write_text("CERTJOB_DATABASE_URL=embedded\n\n\n" + line.format(SECRET) + "\n")

        assert self.refusal(file) == f"the settings file {file}, line 4: write NAME='value', or # before a remark"

    def test_one_that_is_no_utf8_is_refused_without_showing_it(self, file: Path) -> None:
        """An old editor wrote it in Latin-1."""
        file.write_bytes(f"CERTJOB_NOTIFY_PASSWORD={SECRET}å".encode("latin-1"))

        assert "it is no text in UTF-8" in self.refusal(file)

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("nowhere/x.env", "No such file or directory"),
            (".", "Is a directory"),
            ("ring", "symbolic links"),
            ("\0", ""),
        ],
    )
    def test_one_that_is_not_there_is_refused(self, tmp_path: Path, path: str, why: str) -> None:
        """It was asked for, so it holds something."""
        (tmp_path / "ring").symlink_to("ring")

        said = self.refusal(path)

        assert why in said
        assert said.endswith("; correct --env-file or CERTJOB_ENV_FILE")

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
    def test_one_that_others_may_write_is_refused(self, file: Path, mode: int) -> None:
        """A group is others, too."""
        file.chmod(mode)

        assert f"may be written by others than its owner (mode {mode:03o}); nobody but" in self.refusal(file)

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
    def test_one_in_a_folder_that_others_may_write_is_refused(self, tmp_path: Path, mode: int) -> None:
        """They can put another in its place; further up, too."""
        folder = tmp_path / "open"
        (folder / "inside").mkdir(parents=True)
        file = folder / "inside" / "certjob.env"
        file.touch(mode=0o600)
        folder.chmod(mode)

        assert f"{folder} may be written by others" in self.refusal(file)

    def test_a_folder_with_the_sticky_bit_is_good_enough(self, tmp_path: Path) -> None:
        """As /tmp, and as the secrets of Kubernetes: there, each can only replace what is their own."""
        folder = tmp_path / "sticky"
        folder.mkdir()
        folder.chmod(0o1777)
        file = folder / "certjob.env"
        file.touch(mode=0o600)
        file.write_text("CERTJOB_DATABASE_URL=embedded\n")

        assert load_settings(str(file)).database_url.get_secret_value() == "embedded"

    def test_a_link_is_followed_and_all_that_it_leads_through_is_looked_at(self, file: Path, tmp_path: Path) -> None:
        """Where the link lies, and where the file lies."""
        file.write_text("CERTJOB_DATABASE_URL=embedded\n")
        (tmp_path / "safe").symlink_to(file)
        (tmp_path / "open").mkdir()
        (tmp_path / "open" / "link").symlink_to(file)
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "detour").symlink_to("open/link")

        assert load_settings(str(tmp_path / "safe")).database_url.get_secret_value() == "embedded"
        assert f"{tmp_path}/open may be written by others" in self.refusal(tmp_path / "detour")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
    @pytest.mark.parametrize("what", ["file", "folder", "link"])
    def test_one_of_another_user_is_refused(self, tmp_path: Path, what: str) -> None:
        """Of whoever owns the file, the folder that it lies in, or the link that leads to it."""
        folder = tmp_path / "folder"
        folder.mkdir()
        file = folder / "certjob.env"
        file.touch(mode=0o600)
        link = tmp_path / "link"
        link.symlink_to(file)
        os.chown({"file": file, "folder": folder, "link": link}[what], 12345, -1, follow_symlinks=False)

        assert f"{what if what != 'file' else 'certjob.env'} belongs to another user (id 12345)" in self.refusal(link)


@pytest.fixture
def machine_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own clock shows New York."""
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    if before is None:
        monkeypatch.delenv("TZ")
    else:
        monkeypatch.setenv("TZ", before)
    time.tzset()


@pytest.mark.usefixtures("machine_elsewhere")
class TestToday:
    """The calendar day where the programme lives, whatever the machine's own zone."""

    @pytest.mark.parametrize(
        ("instant", "today"),
        [
            ("2026-03-10 22:59:59", date(2026, 3, 10)),
            ("2026-03-10 23:00:00", date(2026, 3, 11)),
            ("2026-03-10 23:30:00", date(2026, 3, 11)),
            ("2026-07-10 21:59:59", date(2026, 7, 10)),
            ("2026-07-10 22:00:00", date(2026, 7, 11)),
        ],
    )
    def test_a_day_in_oslo_begins_before_the_day_of_utc(
        self, environment: pytest.MonkeyPatch, instant: str, today: date
    ) -> None:
        """One hour before in winter, two in summer."""
        settings = load(environment)

        with freeze_time(instant):
            assert settings.today == today

    @pytest.mark.parametrize(
        ("first_second", "last_second", "day"),
        [
            ("2026-03-28 23:00:00", "2026-03-29 21:59:59", date(2026, 3, 29)),
            ("2026-10-24 22:00:00", "2026-10-25 22:59:59", date(2026, 10, 25)),
        ],
        ids=["23 hours in spring", "25 hours in autumn"],
    )
    def test_a_day_on_which_the_clocks_change_is_one_day(
        self, environment: pytest.MonkeyPatch, first_second: str, last_second: str, day: date
    ) -> None:
        """Neither skipped nor lived twice."""
        settings = load(environment)

        for instant in (first_second, f"{day} 00:59:59", f"{day} 01:00:00", f"{day} 12:00:00", last_second):
            with freeze_time(instant):
                assert settings.today == day

    @pytest.mark.parametrize(
        ("zone", "today"),
        [
            ("Pacific/Kiritimati", date(2026, 3, 11)),
            ("Europe/Oslo", date(2026, 3, 10)),
            ("UTC", date(2026, 3, 10)),
            ("Pacific/Pago_Pago", date(2026, 3, 9)),
        ],
    )
    def test_the_zone_decides_which_day_it_is(self, environment: pytest.MonkeyPatch, zone: str, today: date) -> None:
        """At one instant there are three dates on earth."""
        settings = load(environment, CERTJOB_TIME_ZONE=zone)

        with freeze_time("2026-03-10 10:30:00"):
            assert settings.today == today

    def test_the_leap_day_is_a_day(self, environment: pytest.MonkeyPatch) -> None:
        """Two minutes to midnight on 29 February 2028."""
        settings = load(environment)

        with freeze_time("2028-02-29 22:58:00"):
            assert settings.today == date(2028, 2, 29)


class TestMonitoring:
    """Where others are told how a night went."""

    def test_both_are_off_unless_set(self, environment: pytest.MonkeyPatch) -> None:
        """Nobody outside is told anything by default."""
        settings = load(environment)

        assert (settings.ping_url, settings.metrics_file) == (None, None)

    @pytest.mark.parametrize(
        ("url", "phrase"),
        [
            (f"http://hc.example/{SECRET}", "plain http:// is refused"),
            (f"https://hc.example/{SECRET}?x=1", "must hold no ? and no #"),
            (f"https://hc.example/{SECRET}#x", "must hold no ? and no #"),
            (f"https://user:{SECRET}@hc.example/x", "must hold no user or password"),
            (f"ftp://hc.example/{SECRET}", "must be a URL"),
            (SECRET, "must be a URL"),
        ],
    )
    def test_a_ping_address_that_cannot_work_is_refused(
        self, environment: pytest.MonkeyPatch, url: str, phrase: str
    ) -> None:
        """The address is the secret: it is never quoted."""
        said = complaint(environment, CERTJOB_PING_URL=url)

        assert said.startswith("CERTJOB_PING_URL: ")
        assert phrase in said

    def test_two_checks_have_two_addresses(self, environment: pytest.MonkeyPatch) -> None:
        """One that hears both success and failure of the same run tells nothing."""
        url = f"https://hc.example/{SECRET}"

        said = complaint(environment, CERTJOB_PING_URL=url, CERTJOB_ATTENTION_PING_URL=url)

        assert said.startswith("CERTJOB_ATTENTION_PING_URL must be the address of a second check")

    def test_a_ping_address_prints_as_stars(self, environment: pytest.MonkeyPatch) -> None:
        """Whoever knows it can say that a night ran."""
        settings = load(environment, CERTJOB_PING_URL=f"https://hc.example/{SECRET}")

        assert SECRET not in repr(settings)

    @pytest.mark.parametrize(
        ("path", "phrase"),
        [("/var/lib/metrics/certjob.txt", "ends in .prom"), ("certjob.prom", "whole path"), ("/var/.prom", ".prom")],
    )
    def test_a_metrics_file_that_nobody_reads_is_refused(
        self, environment: pytest.MonkeyPatch, path: str, phrase: str
    ) -> None:
        """node_exporter reads *.prom only; cron starts in another folder."""
        said = complaint(environment, CERTJOB_METRICS_FILE=path)

        assert said.startswith("CERTJOB_METRICS_FILE: ")
        assert phrase in said
