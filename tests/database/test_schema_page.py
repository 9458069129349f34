"""``sql/schema.sql`` is what a reader takes for the schema: it must be what the migrations make."""

import pytest

from certjob import database
from tests.support import schema_page


def test_the_page_shows_what_the_migrations_make(owner: database.Connection) -> None:
    """On every version of PostgreSQL alike."""
    assert schema_page.FILE.read_text() == schema_page.render(owner), "run `make schema`"


def test_a_table_without_a_line_of_its_own_is_not_left_out(owner: database.Connection) -> None:
    """Whoever adds a table is told where to say what it holds."""
    owner.execute("CREATE TABLE pages (id integer)")

    with pytest.raises(LookupError, match=r"new, or gone; correct TOPICS in schema_page\.py: pages"):
        schema_page.render(owner)
