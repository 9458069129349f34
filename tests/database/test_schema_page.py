"""``sql/schema.sql`` is what a reader takes for the schema: it must be what the migrations make."""

from certjob import database
from tests.support import schema_page


def test_the_page_shows_what_the_migrations_make(owner: database.Connection) -> None:
    """On every version of PostgreSQL alike."""
    assert schema_page.FILE.read_text() == schema_page.render(owner), "run `make schema`"
