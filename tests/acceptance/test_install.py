"""The install page can be followed as it is printed, on a new server."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from certjob.database import embedded
from tests.acceptance.test_mirror import MIRROR
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.docs import read_section
from tests.support.own_server import data_folder
from tests.support.programme_world import APP_TABLES


def sql_blocks(title: str) -> list[list[str]]:
    """Return the statements of each indented block of a section that has SQL, without psql's own commands."""
    blocks = re.findall(r"(?:^ {4,}\S.*\n)+", read_section("docs/install.md", title), flags=re.MULTILINE)
    statements = [
        [line.strip() for line in block.splitlines() if not line.strip().startswith("\\")] for block in blocks
    ]
    return [block for block in statements if re.match("CREATE |GRANT ", block[0])]


@pytest.fixture
def new_server() -> Iterator[str]:
    """The administrator's URL of a new server."""
    with data_folder("install") as folder, embedded.server(folder / "postgresql") as url:
        yield url


def execute(url: str, *statements: str | bytes) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode() if isinstance(statement, str) else statement)


def test_install_page_leads_to_a_check_without_a_failure(here: Certjob, new_server: str, tmp_path: Path) -> None:
    """The printed statements create the owner, the database and the job's login; mentors may lack contact IDs."""
    before, after = sql_blocks("On your own server")
    owner, job = (
        psycopg.conninfo.make_conninfo(new_server, dbname="certjob", user=user)
        for user in ("certjob_owner", "certjob_cron")
    )
    execute(new_server, *before)
    assert here("db", "migrate", CERTJOB_DATABASE_URL=owner).returncode == 0
    execute(owner, *after)

    hlf = ("organisation", "set", "hlf", "--portal", "dynamics")
    assert here(*hlf, CERTJOB_DATABASE_URL=job).returncode == 0
    mentors = tmp_path / "mentors.csv"
    mentors.write_text("organisation,member_no,kind,issued_on,expires_on\nhlf,M1,likeperson,2025-01-01,2099-01-01\n")
    assert here("load", str(mentors), CERTJOB_DATABASE_URL=job).returncode == 0
    result = here("check", "--json", CERTJOB_DATABASE_URL=job, CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/mail")

    verdicts = {each["verdict"] for each in json.loads(result.stdout)["checks"]}
    assert (result.returncode, verdicts) == (3, {"ok", "warn"}), result


def test_install_page_leads_from_the_tables_of_an_app_to_a_mail(here: Certjob, new_server: str, tmp_path: Path) -> None:
    """The app has its own database and owner. certjob's owner is not a superuser."""
    (create_owner, *_), (create_job, *_) = sql_blocks("On your own server")
    (may_create_schemas,), (may_read,) = sql_blocks("Next to an existing app")
    app, owner, job = (
        psycopg.conninfo.make_conninfo(new_server, dbname="programme", user=user)
        for user in ("app", "certjob_owner", "certjob_cron")
    )
    execute(new_server, "CREATE ROLE app LOGIN", "CREATE DATABASE programme OWNER app", create_owner)
    execute(
        app, APP_TABLES, "INSERT INTO profiles (club_id, member_number, email) VALUES (1, 'M1', 'kari@example.org')"
    )
    execute(app, f"INSERT INTO certifications SELECT id, 'x', '2025-01-01', '{today() + timedelta(7)}' FROM profiles")

    execute(new_server.replace("/postgres?", "/programme?"), may_create_schemas)
    assert here("db", "migrate", CERTJOB_DATABASE_URL=owner).returncode == 0
    execute(owner, create_job)
    assert here("organisation", "set", "hlf", CERTJOB_DATABASE_URL=job).returncode == 0
    execute(app, may_read)
    execute(owner, MIRROR)
    execute(app, "UPDATE profiles SET email = 'ola@example.org'")
    result = here("run", CERTJOB_DATABASE_URL=job, CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/mail")

    assert (result.returncode, result.stderr) == (0, "")
    (mail,) = (tmp_path / "mail/new").iterdir()
    assert "<ola@example.org>" in mail.read_text()
