"""The texts that people read: Jinja2 templates in this folder, one text and one HTML file per message and language."""

from certjob.mail.messages.checking import TemplateProblem, check_templates, open_templates
from certjob.mail.messages.content import (
    LANGUAGES,
    ReminderContent,
    RenderedMessage,
    language_of,
    reminder_words,
    write_date,
    write_moment,
)
from certjob.mail.messages.fallback import NightTemplates
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates

__all__ = [
    "LANGUAGES",
    "OUR_TEMPLATES",
    "NightTemplates",
    "ReminderContent",
    "RenderedMessage",
    "TemplateProblem",
    "Templates",
    "check_templates",
    "language_of",
    "open_templates",
    "render_reminder",
    "write_date",
    "write_moment",
]


def render_reminder(
    content: ReminderContent, *, templates: Templates | NightTemplates = OUR_TEMPLATES
) -> RenderedMessage:
    """Write the reminder in the mentor's language. ``Templates`` raise TemplateError when one of them breaks."""
    return templates.render(
        "reminder",
        language=language_of(content.locale),
        slug=content.organisation_slug,
        words=reminder_words(content),
    )
