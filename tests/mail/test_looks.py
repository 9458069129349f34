"""What is measured of a page's looks without a browser; `make looks` shows the rest."""

import pytest

from certjob.mail.messages import LANGUAGES, OUR_TEMPLATES, render_reminder
from certjob.mail.messages.samples import sample_digests, sample_reminders
from tests.looks.contrast import contrasts

AA = 4.5
"""WCAG 2.2, 1.4.3."""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(*, dark: bool) -> None:
    """In both palettes, and these are two."""
    pages = [render_reminder(next(sample_reminders(language="nb", slug=""))).html]
    pages += [
        OUR_TEMPLATES.render("digest", language="nb", slug="", words=words).html for words in sample_digests("nb")
    ]

    grounds = set()
    for page in pages:
        for ratio, colour, ground, text in contrasts(page, dark=dark):
            assert ratio >= AA, (colour, ground, text)
            grounds.add(ground)

    assert ("#16181c" in grounds) is dark
    assert ("#ffffff" in grounds) is not dark


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reader_without_styles_sees_the_light_page(language: str) -> None:
    """Some mail programs drop what stands in the head: colours and sizes of the light page are on the elements."""
    page = render_reminder(next(sample_reminders(language=language, slug=""))).html
    bare = page[: page.index("<style>")] + page[page.index("</style>") :]

    assert list(contrasts(bare, dark=True)) == list(contrasts(page, dark=False))
