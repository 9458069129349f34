"""The texts that people read: Jinja2 templates in this folder, one text and one HTML file per message and language."""

from certjob.mail.messages.checking import check_templates, open_templates
from certjob.mail.messages.content import (
    LANGUAGES,
    Recipient,
    RenderedMessage,
    language_of,
    reminder_words,
    write_date,
    write_moment,
)
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates

__all__ = [
    "LANGUAGES",
    "OUR_TEMPLATES",
    "Recipient",
    "RenderedMessage",
    "Templates",
    "check_templates",
    "language_of",
    "open_templates",
    "reminder_words",
    "write_date",
    "write_moment",
]
