"""The texts that people read: Jinja2 templates in this folder, one text and one HTML file per message and language."""

from certjob.mail.messages.checking import TemplateProblem, check_templates, open_templates
from certjob.mail.messages.content import (
    LANGUAGES,
    ReminderContent,
    RenderedMessage,
    clean,
    language_of,
    write_date,
    write_moment,
)
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates

__all__ = [
    "LANGUAGES",
    "OUR_TEMPLATES",
    "ReminderContent",
    "RenderedMessage",
    "TemplateProblem",
    "Templates",
    "check_templates",
    "clean",
    "language_of",
    "open_templates",
    "render_reminder",
    "write_date",
    "write_moment",
]


def render_reminder(content: ReminderContent, *, templates: Templates = OUR_TEMPLATES) -> RenderedMessage:
    """Write the reminder in the mentor's language. Raises TemplateError when a template of the programme's breaks."""
    return templates.render_reminder(content)
