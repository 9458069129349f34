"""Outside eyes: pings at the beginning and the end of a night, the metrics file; neither ever touches the run."""

import json
import os
import resource
import stat
import subprocess
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certjob.views import pings
from certjob.views.metrics import write_file
from tests.conftest import Certjob, installed_command
from tests.support.command_line import WITHIN_SECONDS, Finished, assert_no_secret, run_in_process, started
from tests.support.facts import Facts
from tests.support.ping_host import SECRET_PATH, PingHost, ping_host
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, server_tls

LONG_AGO = date(2025, 1, 1)


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


def test_a_night_that_needs_a_person_tells_its_exit_code(here: Certjob, facts: Facts, host: PingHost) -> None:
    """So that somebody is told of the mentor who may still be visible."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    result = here("run", CERTJOB_PING_URL=host.url)

    assert result.returncode == 3
    assert host.told == ["start", "3"]
    assert host.pings[1].body["stop_codes"] == ["portal:no_url"]


@pytest.mark.parametrize(
    ("portal", "code", "attention"),
    [(None, 0, [""]), ("dynamics", 3, ["fail"])],
)
def test_a_second_check_hears_what_needs_attention_and_the_first_that_the_night_ran(
    here: Certjob, facts: Facts, host: PingHost, portal: str | None, code: int, attention: list[str]
) -> None:
    """A push that is blocked for weeks rings there, and hides no night that never ran."""
    facts.certified_mentor(facts.organisation(portal=portal), LONG_AGO)

    with ping_host() as second:
        result = here("run", CERTJOB_PING_URL=host.url, CERTJOB_ATTENTION_PING_URL=second.url)

    assert result.returncode == code
    assert host.told == ["start", ""]
    assert second.told == attention
    assert second.pings[0].body == host.pings[1].body
    assert second.pings[0].body["exit_code"] == code


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}, 1),
        ({"CERTJOB_NOTIFY_URL": "smtp://localhost", "CERTJOB_MAIL_FROM": "nobody"}, 2),
    ],
)
def test_a_night_that_failed_is_the_first_checks_business_alone(
    here: Certjob, host: PingHost, settings: dict[str, str], code: int
) -> None:
    """Whether something needs attention, nobody knows then."""
    with ping_host() as second:
        here("run", CERTJOB_PING_URL=host.url, CERTJOB_ATTENTION_PING_URL=second.url, **settings)

    assert host.told == ["start", str(code)]
    assert second.told == []


def test_each_check_that_is_dead_is_a_line_of_its_own(here: Certjob, facts: Facts) -> None:
    """Two addresses, two mistakes; and one that is dead does not keep the other from being told."""
    with ping_host() as second:
        dead = f"http://127.0.0.1:1/{SECRET_PATH}"
        both = here("run", CERTJOB_PING_URL=dead, CERTJOB_ATTENTION_PING_URL=f"{dead}-2")
        one = here("run", CERTJOB_PING_URL=dead, CERTJOB_ATTENTION_PING_URL=second.url)

    assert (both.returncode, one.returncode) == (0, 0)
    assert [line.split()[6] for line in both.stderr.splitlines()] == ["CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"]
    assert one.stderr.count("\n") == 1
    assert second.told == [""]


@pytest.mark.parametrize(
    ("arguments", "settings", "code"),
    [
        (["--allow-earlier-date"], {"CERTJOB_DATABASE_URL": "postgresql://a:b@c@127.0.0.1/certjob"}, 2),
        ([], {"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}, 1),
        ([], {"CERTJOB_NOTIFY_URL": "smtp://localhost", "CERTJOB_MAIL_FROM": "nobody"}, 2),
    ],
)
def test_a_night_that_dies_early_tells_its_exit_code(
    here: Certjob, host: PingHost, arguments: list[str], settings: dict[str, str], code: int
) -> None:
    """Everything after the settings were read: the database is gone, an argument is wrong."""
    result = here("run", *arguments, CERTJOB_PING_URL=host.url, **settings)

    assert result.returncode == code
    assert host.told == ["start", str(code)]
    assert host.pings[1].body == {"exit_code": code}
    assert host.pings[0].run_id == host.pings[1].run_id


def test_without_settings_nobody_can_be_told(here: Certjob, host: PingHost) -> None:
    """Exit 2; whoever waits for the ping notices all the same."""
    result = here("run", CERTJOB_PING_URL=host.url, CERTJOB_TIME_ZONE="Europe/Nowhere")

    assert (result.returncode, host.pings) == (2, [])


@pytest.mark.parametrize(
    "arguments", [["run", "--dry-run"], ["run", "--organisation", "hlf"], ["deliver"], ["alerts"], ["status"]]
)
def test_only_nights_ping(here: Certjob, facts: Facts, host: PingHost, arguments: list[str]) -> None:
    """One address has one schedule: a delivery, or one organisation's run, would hide that no night has run."""
    facts.organisation("hlf", portal=None)

    here(*arguments, CERTJOB_PING_URL=host.url)

    assert host.pings == []


def test_a_dead_host_is_one_line_and_changes_nothing(here: Certjob, facts: Facts) -> None:
    """The night ends as it would have; -q leaves out what is well, and this is not."""
    loud = here("run", CERTJOB_PING_URL=f"http://127.0.0.1:1/{SECRET_PATH}")
    quiet = here("run", "-q", CERTJOB_PING_URL=f"http://127.0.0.1:1/{SECRET_PATH}")

    assert loud.returncode == quiet.returncode == 0
    assert loud.stderr == (
        "certjob run: warning: the ping to CERTJOB_PING_URL did not get through: its host cannot be reached; "
        "the run itself is not touched\n"
    )
    assert quiet.stderr == loud.stderr
    assert facts.rows("SELECT outcome FROM job_runs") == [("ok",), ("ok",)]


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


@pytest.mark.parametrize(
    ("answers", "told", "phrase"),
    [
        ([500, 200], ["start", "start", ""], ""),
        ([429, 200], ["start", "start", ""], ""),
        ([503, 503], ["start", "start", ""], "its host answered 503"),
        ([404], ["start", ""], "its host answered 404, so it is not a ping address"),
        ([302], ["start", ""], "its host answered 302, so it is not a ping address"),
    ],
)
def test_a_host_in_trouble_is_asked_again(
    here: Certjob,
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int | None],
    told: list[str],
    phrase: str,
) -> None:
    """Once more for what may pass; a lost ping would be a false alarm at night."""
    monkeypatch.setattr(pings, "PAUSE_SECONDS", 0.01)
    with ping_host(answers) as host:
        result = here("run", CERTJOB_PING_URL=host.url)

    assert (result.returncode, host.told) == (0, told)
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


def test_the_address_is_in_no_log(certjob: Certjob, facts: Facts) -> None:
    """Not with -v either, in neither format."""
    for form in ("text", "json"):
        result = certjob("run", "-v", CERTJOB_LOG_FORMAT=form, CERTJOB_PING_URL=f"http://127.0.0.1:1/{SECRET_PATH}")

        assert "CERTJOB_PING_URL" in result.stderr
        assert SECRET_PATH not in result.stdout + result.stderr


@pytest.mark.parametrize("answers", [[], [200, None]])
def test_a_night_that_is_stopped_tells_so_in_time(
    environment: dict[str, str], facts: Facts, tmp_path: Path, answers: list[int | None]
) -> None:
    """Ten seconds after SIGTERM it is over, also when the host of the pings says nothing."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer(default=hang()) as portal, ping_host(answers) as host:
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
    """When, how long, what by outcome, what waits and for how long, what has failed."""
    began = time.time()
    facts.certified_mentor(facts.organisation(), LONG_AGO)

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
    """An organisation's own run is no night; an alert on absence sees it."""
    facts.organisation("hlf", portal=None)

    measured("run", "--organisation", "hlf")

    assert not [key for key in samples(metrics) if "last_success" in key[0]]
    assert ("certjob_backlog_items", "due", "reminders") in samples(metrics)


def test_a_plan_writes_no_figures(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """It was no night."""
    measured("run", "--dry-run")

    assert not metrics.exists()


def test_the_file_can_be_read_by_others_and_nothing_lies_beside_it(
    metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever umask cron has; replaced in one step."""
    metrics.parent.mkdir()
    before = os.umask(0o077)
    try:
        write_file(metrics, b"old 1\n")
        write_file(metrics, b"new 1\n")
    finally:
        os.umask(before)

    assert metrics.read_bytes() == b"new 1\n"
    assert stat.S_IMODE(metrics.stat().st_mode) == 0o644
    assert list(metrics.parent.iterdir()) == [metrics]


def test_a_link_that_somebody_planted_beside_the_file_is_not_followed(
    environment: dict[str, str], facts: Facts, metrics: Path, tmp_path: Path
) -> None:
    """In a folder where others may write: nothing of what its target holds is lost."""
    metrics.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("do not touch\n")
    plant = f'ln -s {target} {metrics.parent}/.{metrics.name}.$$; ln -s {target} {metrics}; exec "$0" run'

    result = subprocess.run(
        ["/bin/sh", "-c", plant, str(installed_command())],  # the command has the number that its shell had
        env=environment | {"CERTJOB_METRICS_FILE": str(metrics)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert target.read_text() == "do not touch\n"
    assert not metrics.is_symlink()
    assert b"certjob_info" in metrics.read_bytes()


def test_a_folder_that_is_not_there_only_warns(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """The night is done; one line says what is not."""
    metrics.parent.rmdir()

    result = measured("run")

    assert result.returncode == 0
    assert result.stderr == (
        "certjob run: warning: the metrics file could not be written: No such file or directory; "
        "see CERTJOB_METRICS_FILE\n"
    )


def test_a_full_disk_only_warns(environment: dict[str, str], facts: Facts, metrics: Path, tmp_path: Path) -> None:
    """The old file stays whole, and no half of a new one lies beside it. A limit on file sizes stands for the disk."""
    metrics.parent.mkdir()
    metrics.write_text("old 1\n")

    result = subprocess.run(
        [str(installed_command()), "run"],
        env=environment | {"CERTJOB_METRICS_FILE": str(metrics), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)),
    )

    assert result.returncode == 0
    assert result.stderr.startswith("certjob run: warning: the metrics file could not be written: File too large")
    assert metrics.read_text() == "old 1\n"
    assert list(metrics.parent.iterdir()) == [metrics]


def test_no_figure_names_a_person(measured: Certjob, facts: Facts, metrics: Path) -> None:
    """Counts and times; no id, no number, no name."""
    mentor = facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M4711")

    measured("run")

    text = metrics.read_text()
    for secret in (str(mentor), "M4711", "Nordmann", "example.org"):
        assert secret not in text
