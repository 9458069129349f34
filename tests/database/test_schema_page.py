"""``sql/schema.sql`` is what a reader takes for the schema: it must be what the migrations make."""

import pytest

from certjob.database import Connection
from tests.support import schema_page


def test_the_page_shows_what_the_migrations_make(owner: Connection) -> None:
    if owner.info.server_version // 10_000 != schema_page.POSTGRESQL:
        pytest.skip("the page was not compared: each PostgreSQL words a schema in its own way")

    assert schema_page.FILE.read_text() == schema_page.render(owner.info.dsn), "run `make schema`"
