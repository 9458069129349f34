"""The pictures in the documents show the present templates and pages."""

import pytest

from tests.looks.pictures import FOLDER, SOURCES, source_hash, stored_hash


@pytest.mark.parametrize("name", SOURCES)
def test_a_picture_was_drawn_from_the_present_files(name: str) -> None:
    """After a change of a template or a page, `make looks` draws the pictures anew; look at them before you commit."""
    assert stored_hash(FOLDER / f"{name}.png") == source_hash(name), (
        f"docs/pictures/{name}.png is old: run `make looks`"
    )
