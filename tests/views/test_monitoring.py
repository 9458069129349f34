"""Outside eyes: pings at the beginning and the end of a night, the metrics file; neither ever touches the run."""

import json
import os
import stat
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certjob.views import pings
from certjob.views.metrics import write_file
from tests.conftest import Certjob
from tests.support.command_line import WITHIN_SECONDS, Finished, assert_no_secret, run_in_process, started
from tests.support.facts import Facts
from tests.support.full_disk import full_disk
from tests.support.ping_host import SECRET_PATH, PingHost, ping_host
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, server_tls

LONG_AGO = date(2025, 1, 1)
AWAY = {"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}
WRONG = {"CERTJOB_NOTIFY_URL": "smtp://localhost", "CERTJOB_MAIL_FROM": "nobody"}
DEAD = f"http://127.0.0.1:1/{SECRET_PATH}"


@pytest.fixture
def host() -> Iterator[PingHost]:
    with ping_host() as host:
        yield host


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str, tmp_path: Path) -> dict[str, str]:
    """A cron line whose night needs nobody."""
    return bare_environment | {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
    }


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    def run(*arguments: str, **settings: str) -> Finished:
        result = run_in_process(*arguments, environment=environment | settings, folder=tmp_path)
        assert_no_secret(result)
        assert SECRET_PATH not in result.stdout + result.stderr
        return result

    return run


# Pings.


def test_a_night_tells_its_beginning_and_its_end(here: Certjob, facts: Facts, host: PingHost) -> None:
    """POST, the same rid, which is the run's id; at the end counts only, nobody's id or name."""
    mentor = facts.certified_mentor(facts.organisation(portal=None), LONG_AGO)

    result = here("run", "--json", CERTJOB_PING_URL=host.url)

    run_id = json.loads(result.stdout)["run_id"]
    assert (result.returncode, result.stderr) == (0, "")
    assert [(ping.method, ping.what, ping.run_id) for ping in host.pings] == [
        ("POST", "start", run_id),
        ("POST", "", run_id),
    ]
    start, end = (ping.body for ping in host.pings)
    assert start == {}
    assert end["exit_code"] == 0
    assert end["mentors"]["paused"] == 1
    assert numbers_and_codes_only(end)
    assert str(mentor) not in json.dumps(end)


def numbers_and_codes_only(value: Any) -> bool:
    """No text but the few that the run's document has at its top."""
    texts = [name for name, part in value.items() if isinstance(part, str)]
    parts = [part for part in value.values() if isinstance(part, dict)]
    return sorted(texts) == ["command", "outcome", "today"] and all(
        isinstance(number, int) for part in parts for number in part.values()
    )


@pytest.mark.parametrize(
    ("portal", "code", "attention", "stop_codes"),
    [(None, 0, "", None), ("dynamics", 3, "fail", ["portal:no_url"])],
)
def test_a_second_check_hears_what_needs_attention_and_the_first_that_the_night_ran(
    here: Certjob,
    facts: Facts,
    host: PingHost,
    portal: str | None,
    code: int,
    attention: str,
    stop_codes: list[str] | None,
) -> None:
    """A push blocked for weeks rings there, and hides no night that never ran; alone, a check hears the code."""
    facts.certified_mentor(facts.organisation(portal=portal), LONG_AGO)

    here("run", CERTJOB_PING_URL=host.url)
    with ping_host() as second:
        result = here("run", CERTJOB_PING_URL=host.url, CERTJOB_ATTENTION_PING_URL=second.url)

    assert result.returncode == code
    assert host.told == ["start", str(code or ""), "start", ""]
    assert second.told == [attention]
    assert second.pings[0].body == host.pings[3].body
    assert second.pings[0].body["exit_code"] == code
    assert host.pings[1].body.get("stop_codes") in (stop_codes, [])


def test_a_night_that_failed_is_the_first_checks_business_alone(here: Certjob, host: PingHost) -> None:
    """Everything after the settings were read; whether something needs attention, nobody knows then."""
    with ping_host() as second:
        for settings, code in ((AWAY, 1), (WRONG, 2), ({"CERTJOB_DATABASE_URL": "postgresql://a:b@c@127.0.0.1/x"}, 2)):
            host.pings.clear()
            result = here("run", CERTJOB_PING_URL=host.url, CERTJOB_ATTENTION_PING_URL=second.url, **settings)

            assert result.returncode == code
            assert host.told == ["start", str(code)]
            assert host.pings[1].body == {"exit_code": code}
            assert host.pings[0].run_id == host.pings[1].run_id
    assert second.told == []


def test_each_check_that_is_dead_is_a_line_of_its_own_and_changes_nothing(here: Certjob, facts: Facts) -> None:
    """Two addresses, two mistakes, with -q too; one that is dead does not keep the other from being told."""
    with ping_host() as second:
        both = here("run", "-q", CERTJOB_PING_URL=DEAD, CERTJOB_ATTENTION_PING_URL=f"{DEAD}-2")
        one = here("run", CERTJOB_PING_URL=DEAD, CERTJOB_ATTENTION_PING_URL=second.url)
        logged = here("run", "-v", CERTJOB_LOG_FORMAT="json", CERTJOB_PING_URL=DEAD)  # the address is in no log

    assert (both.returncode, one.returncode) == (0, 0)
    assert [line.split()[6] for line in both.stderr.splitlines()] == ["CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"]
    assert one.stderr == (
        "certjob run: warning: the ping to CERTJOB_PING_URL did not get through: its host cannot be reached; "
        "the run itself is not touched\n"
    )
    assert second.told == [""]
    assert "CERTJOB_PING_URL" in logged.stderr
    assert facts.rows("SELECT DISTINCT outcome FROM job_runs") == [("ok",)]


def test_without_settings_nobody_can_be_told(here: Certjob, host: PingHost) -> None:
    """Exit 2; whoever waits for the ping notices all the same."""
    result = here("run", CERTJOB_PING_URL=host.url, CERTJOB_TIME_ZONE="Europe/Nowhere")

    assert (result.returncode, host.pings) == (2, [])


def test_only_nights_ping(here: Certjob, facts: Facts, host: PingHost) -> None:
    """One address has one schedule: a delivery, or one organisation's run, would hide that no night has run."""
    facts.organisation("hlf", portal=None)

    for arguments in ("run --dry-run", "run --organisation hlf", "deliver", "alerts", "status"):
        here(*arguments.split(), CERTJOB_PING_URL=host.url)

        assert host.pings == [], arguments


def test_a_host_that_says_nothing_costs_ten_seconds_at_most(
    here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tries of a ping; here shortened."""
    assert pings.TOTAL_SECONDS == 10.0
    monkeypatch.setattr(pings, "TOTAL_SECONDS", 0.4)
    with ping_host([None, None]) as host:
        began = time.monotonic()
        result = here("run", CERTJOB_PING_URL=host.url)
        took = time.monotonic() - began

    assert result.returncode == 0
    assert "its host did not answer in time" in result.stderr
    assert host.told == ["start", ""]
    assert took < 8


def test_a_host_in_trouble_is_asked_again(here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more for what may pass; a lost ping would be a false alarm at night."""
    monkeypatch.setattr(pings, "PAUSE_SECONDS", 0.01)
    cases: list[tuple[list[int | None], list[str], str]] = [
        ([500, 200], ["start", "start", ""], ""),
        ([429, 200], ["start", "start", ""], ""),
        ([503, 503], ["start", "start", ""], "its host answered 503"),
        ([404], ["start", ""], "its host answered 404, so it is not a ping address"),
        ([302], ["start", ""], "its host answered 302, so it is not a ping address"),
    ]
    for answers, told, phrase in cases:
        with ping_host(answers) as host:
            result = here("run", CERTJOB_PING_URL=host.url)

        assert (result.returncode, host.told) == (0, told), answers
        assert phrase in result.stderr
        assert bool(result.stderr) == bool(phrase)


def test_the_hosts_certificate_is_verified(here: Certjob, facts: Facts, certjob: Certjob, tmp_path: Path) -> None:
    """The address is the secret; it is not told to whoever answers."""
    with ping_host(tls=server_tls()) as host:
        refused = certjob("run", CERTJOB_PING_URL=host.url, CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/m")
        told = list(host.told)
        trusted = certjob(
            "run",
            CERTJOB_PING_URL=host.url,
            CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/m",
            SSL_CERT_FILE=str(CERTIFICATE),
        )

    assert "its host's certificate is not trusted" in refused.stderr
    assert (refused.returncode, told) == (0, [])
    assert (trusted.returncode, trusted.stderr, host.told) == (0, "", ["start", ""])


def test_a_night_that_is_stopped_tells_so_in_time(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Ten seconds after SIGTERM it is over, also when the host of the pings says nothing."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer(default=hang()) as portal, ping_host([200, None]) as host:
        settings = environment | {
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_PING_URL": host.url,
        }
        with started("run", environment=settings, folder=tmp_path) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            result = child.stop_within(WITHIN_SECONDS)

    assert result.returncode == 1
    assert "stopped by SIGTERM" in result.stderr
    assert host.told[:2] == ["start", "1"]


# The metrics file.

Samples = dict[tuple[str, ...], float]


def samples(path: Path) -> Samples:
    """What is in the file: the name and the labels' values, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics" / "certjob.prom"


@pytest.fixture
def measured(here: Certjob, metrics: Path) -> Certjob:
    """The command with CERTJOB_METRICS_FILE."""
    metrics.parent.mkdir()

    def run(*arguments: str, **settings: str) -> Finished:
        return here(*arguments, **({"CERTJOB_METRICS_FILE": str(metrics)} | settings))

    return run


def test_a_night_writes_its_figures(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """When, how long, what by outcome, what waits and for how long, what has failed; no id, no number, no name."""
    began = time.time()
    mentor = facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M4711")

    assert measured("run").returncode == 3

    found = samples(metrics)
    assert began - 1 <= found["certjob_last_success_timestamp_seconds", "run"] <= time.time() + 1
    assert found["certjob_last_run_timestamp_seconds", "run"] == found["certjob_last_success_timestamp_seconds", "run"]
    assert 0 < found["certjob_last_run_duration_seconds", "run"] < 60
    assert {key[2]: value for key, value in found.items() if key[0] == "certjob_last_run_outcome"} == {
        "ok": 0,
        "attention": 1,
        "failed": 0,
    }
    assert found["certjob_last_run_items", "run", "paused", "mentors"] == 1
    assert found["certjob_last_run_items", "run", "queued", "portal"] == 1
    assert found["certjob_backlog_items", "due", "portal_hides"] == 1
    assert found["certjob_oldest_pending_age_seconds", "portal_hides"] > 0
    assert found["certjob_oldest_pending_age_seconds", "reminders"] == 0
    assert found["certjob_unresolved_failures",] == 1
    assert found["certjob_failed_reminders",] == 0
    assert found["certjob_failed_digests",] == 0
    for secret in (str(mentor), "M4711", "Nordmann", "example.org"):
        assert secret not in metrics.read_text()


def test_the_commands_do_not_erase_each_other(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """Both are read from the ledger, so that another machine's file has them, too."""
    measured("run")
    night = {key: value for key, value in samples(metrics).items() if key[1:2] == ("run",)}
    metrics.unlink()

    measured("deliver")

    found = samples(metrics)
    assert {key: value for key, value in found.items() if key[1:2] == ("run",)} == night
    assert ("certjob_last_success_timestamp_seconds", "deliver") in found
    assert ("certjob_last_run_items", "deliver", "delivered", "portal") in found


def test_a_failed_night_keeps_the_time_of_the_last_success(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """An alert counts from it."""
    measured("run")
    success = samples(metrics)["certjob_last_success_timestamp_seconds", "run"]
    facts.connection.execute("ALTER TABLE mentors RENAME COLUMN review_on TO review_on_")
    failed = measured("run")
    facts.connection.execute("ALTER TABLE mentors RENAME COLUMN review_on_ TO review_on")

    found = samples(metrics)
    assert failed.returncode == 1
    assert found["certjob_last_success_timestamp_seconds", "run"] == success
    assert found["certjob_last_run_outcome", "run", "failed"] == 1
    assert found["certjob_last_run_timestamp_seconds", "run"] > success


def test_before_any_night_there_is_no_success(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """A plan writes no figures, and an organisation's own run is no night; an alert on absence sees it."""
    facts.organisation("hlf", portal=None)

    measured("run", "--dry-run")
    assert not metrics.exists()
    measured("run", "--organisation", "hlf")

    assert not [key for key in samples(metrics) if "last_success" in key[0]]
    assert ("certjob_backlog_items", "due", "reminders") in samples(metrics)


def test_the_file_can_be_read_by_others_and_no_planted_link_is_followed(metrics: Path, tmp_path: Path) -> None:
    """Whatever umask cron has; replaced in one step, in a folder where others may write."""
    metrics.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("do not touch\n")
    for name in (metrics.name, f".{metrics.name}.{os.getpid()}"):
        (metrics.parent / name).symlink_to(target)
    before = os.umask(0o077)
    try:
        write_file(metrics, b"old 1\n")
        write_file(metrics, b"new 1\n")
    finally:
        os.umask(before)

    assert (metrics.read_bytes(), metrics.is_symlink()) == (b"new 1\n", False)
    assert stat.S_IMODE(metrics.stat().st_mode) == 0o644
    assert target.read_text() == "do not touch\n"
    assert [path for path in metrics.parent.iterdir() if not path.is_symlink()] == [metrics]


def test_a_file_that_cannot_be_written_only_warns(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """The night is done; on a full disk the old file stays whole, and no half of a new one lies beside it."""
    warning = "certjob run: warning: the metrics file could not be written: "
    metrics.write_text("old 1\n")
    with full_disk():
        full = measured("run")
    assert (full.returncode, full.stderr) == (0, f"{warning}File too large; see CERTJOB_METRICS_FILE\n")
    assert metrics.read_text() == "old 1\n"
    assert list(metrics.parent.iterdir()) == [metrics]

    metrics.unlink()
    metrics.parent.rmdir()
    absent = measured("run")
    assert (absent.returncode, absent.stderr) == (
        0,
        f"{warning}No such file or directory; see CERTJOB_METRICS_FILE\n",
    )
