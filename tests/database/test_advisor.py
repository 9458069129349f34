"""Findings of Supabase's advisor in certjob's schema and in the mirror. Without a package registry the test is skipped.

Supabase's command (the npm package ``supabase``, MIT licence, pinned in advisor/deno.lock) contains the advisor: the
SQL of supabase/splinter. That repository has no licence file, so this one has no copy of it.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import deno
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.acceptance.test_mirror import MIRROR
from tests.support.docs import read
from tests.support.own_server import data_folder
from tests.support.programme_world import APP_TABLES
from tests.support.proxy import Proxy

ADVISOR = Path(__file__).parent / "advisor"

LIKE_SUPABASE = """
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
VALUES (1, 'pg_graphql', 10, 'pg_catalog'::regnamespace, false, '1');
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET pgrst.db_schemas = ''public, graphql_public, certjob''', current_database());
END $$;
"""
"""The advisor looks at GraphQL only if its extension is installed, and at the schemas that the API serves."""


NEWER = {"pg_graphql_authenticated_table_exposed", "authenticated_security_definer_function_executable", "unused_index"}
"""Findings of the hosted advisor that this version does not have, and one that depends on the use of the database."""


def listed() -> set[tuple[str, str]]:
    """Return the findings on the page, with their objects."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", read("docs/samples/advisor.md"), re.MULTILINE)
    return {(name, found) for name, objects in rows for found in re.findall(r"`([\w.]+)`", objects)}


@pytest.fixture(scope="module")
def advisor() -> Iterator[Path]:
    """The folder with Supabase's command."""
    with data_folder("advisor") as folder:
        for name in ("deno.json", "deno.lock"):
            shutil.copy(ADVISOR / name, folder)
        install = [deno.find_deno_bin(), "install", "--frozen", "--quiet"]
        environment = os.environ | {"DENO_TLS_CA_STORE": "mozilla,system", "NO_COLOR": "1"}
        done = subprocess.run(install, cwd=folder, env=environment, check=False, capture_output=True, timeout=300)
        if done.returncode and b"integrity" not in done.stderr.lower():
            pytest.skip(f"the advisor was not tried: it cannot be installed ({done.stderr[-200:]!r})")
        assert done.returncode == 0, done.stderr
        yield folder


@pytest.mark.registry
def test_page_lists_what_the_advisor_finds(advisor: Path, supabase_url: str) -> None:
    """The tables of the app next to certjob have findings of their own, and no index of a new database was used."""
    with psycopg.connect(supabase_url, autocommit=True) as owner:
        owner.execute(APP_TABLES)
        owner.execute(MIRROR)
        owner.execute(LIKE_SUPABASE)
    with Proxy(supabase_url) as server:
        address = conninfo_to_dict(server.url)
        url = f"postgresql://{address['user']}:x@127.0.0.1:{address['port']}/{address['dbname']}?sslmode=disable"
        options = ["--db-url", url, "--type", "all", "--level", "info", "--output", "json"]
        command = [deno.find_deno_bin(), "run", "--allow-all", "--quiet", "npm:supabase", "db", "advisors", *options]
        environment = os.environ | {"HOME": str(advisor), "SUPABASE_TELEMETRY_DISABLED": "1"}
        done = subprocess.run(command, cwd=advisor, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {
        (each["name"], f"{each['metadata']['schema']}.{each['metadata']['name']}".removeprefix("certjob."))
        for each in json.loads(done.stdout)
        if each["metadata"]["schema"] != "public" and each["name"] != "unused_index"
    }

    assert found == {each for each in listed() if each[0] not in NEWER}
