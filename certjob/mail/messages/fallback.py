"""The programme's templates as a night uses them: where they break, certjob's own words go out in time."""

from collections.abc import Callable, Mapping

from certjob.errors import ConfigurationError, TemplateError
from certjob.mail.messages.content import RenderedMessage
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates
from certjob.outbox.claims import StageStop


class NightTemplates:
    """Opens the templates with the first message, falls back to certjob's own and remembers what was wrong."""

    def __init__(self, open_templates: Callable[[], Templates] = lambda: OUR_TEMPLATES) -> None:
        """``open_templates`` tries the programme's own, which takes a while. It may raise ConfigurationError."""
        self._open = open_templates
        self._templates: Templates | None = None
        self._unopened: str | None = None
        self._broken: list[str] = []

    def render(self, message: str, *, language: str, slug: str, words: Mapping[str, object]) -> RenderedMessage:
        """Write a message, see ``Templates.render``; it raises nothing because of the programme's templates."""
        try:
            return self._opened().render(message, language=language, slug=slug, words=words)
        except TemplateError as error:
            self._broken.append(str(error))
            return OUR_TEMPLATES.render(message, language=language, slug=slug, words=words)

    def problem(self) -> StageStop | None:
        """Return what somebody has to correct, once the messages are sent."""
        if self._unopened is not None:
            reason = f"{self._unopened}; the messages were written with certjob's own templates instead"
            return StageStop(stage="mail", code="templates", reason=reason)
        if not self._broken:
            return None
        number = len(self._broken)
        what = "1 message was" if number == 1 else f"{number:,} messages were"
        reason = f"{self._broken[0]}; {what} written with certjob's own template instead"
        return StageStop(stage="mail", code="template", reason=reason)

    def _opened(self) -> Templates:
        if self._templates is None:
            try:
                self._templates = self._open()
            except (ConfigurationError, OSError) as error:
                self._unopened = str(error)
                self._templates = OUR_TEMPLATES
        return self._templates
