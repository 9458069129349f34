"""The install page can be followed as it is printed, on a new server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob.database import embedded
from tests.conftest import Certjob
from tests.support.docs import read_section
from tests.support.own_server import data_folder


def sql_blocks(section: str) -> list[list[str]]:
    """Return the statements of each indented block that has SQL; psql's own commands are left out."""
    blocks = re.findall(r"(?:^ {7}.*\n)+", section, flags=re.MULTILINE)
    statements = [
        [line.strip() for line in block.splitlines() if not line.strip().startswith("\\")] for block in blocks
    ]
    return [block for block in statements if block[0].startswith("CREATE ")]


@pytest.fixture
def new_server() -> Iterator[str]:
    """The administrator's URL of a server on which nothing has been created yet."""
    with data_folder("install") as folder, embedded.server(folder / "postgresql") as url:
        yield url


def url_of(server: str, *, user: str) -> str:
    return psycopg.conninfo.make_conninfo(server, dbname="certjob", user=user)


def test_install_page_leads_to_a_check_without_a_failure(here: Certjob, new_server: str, tmp_path: Path) -> None:
    """The printed statements create the owner, the database and the job's login; mentors may lack contact IDs."""
    before, after = sql_blocks(read_section("docs/install.md", "Going live"))
    owner, job = (url_of(new_server, user=name) for name in ("certjob_owner", "certjob_cron"))
    with psycopg.connect(new_server, autocommit=True) as administrator:
        for statement in before:
            administrator.execute(statement.encode())
    assert here("db", "migrate", CERTJOB_DATABASE_URL=owner).returncode == 0
    with psycopg.connect(owner, autocommit=True) as connection:
        for statement in after:
            connection.execute(statement.encode())

    hlf = ("organisation", "set", "hlf", "--portal", "dynamics")
    assert here(*hlf, CERTJOB_DATABASE_URL=job).returncode == 0
    mentors = tmp_path / "mentors.csv"
    mentors.write_text("organisation,member_no,kind,issued_on,expires_on\nhlf,M1,likeperson,2025-01-01,2099-01-01\n")
    assert here("load", str(mentors), CERTJOB_DATABASE_URL=job).returncode == 0
    result = here("check", "--json", CERTJOB_DATABASE_URL=job, CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/mail")

    verdicts = {each["verdict"] for each in json.loads(result.stdout)["checks"]}
    assert (result.returncode, verdicts) == (3, {"ok", "warn"}), result
