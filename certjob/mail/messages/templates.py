"""Find and render templates: the programme's own, then certjob's."""

import difflib
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    PrefixLoader,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    UndefinedError,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from certjob.errors import StageEnd, TemplateError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import RenderedMessage, Words
from certjob.outbox.claims import StageStop

OUR_FOLDER = Path(__file__).parent

_SUFFIXES = frozenset({".txt", ".html", ".words"})


class Templates:
    """Finds each template in the programme's folder, then among certjob's own.

    A programme's template can use certjob's under the prefix ``certjob/``: ``{% include "certjob/reminder.txt" %}``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Read each file at its first use and keep it, because all messages of a run must be alike."""
        self.folder = folder
        self.broken: TemplateError | None = None
        """The first error because of which certjob's own template was used instead."""
        self._own_instead = 0
        self._environments = {page: self._environment(page=page) for page in (False, True)}

    def render(self, message: str, *, words: Mapping[str, object]) -> RenderedMessage:
        """Return a message. If a template of the programme fails, use certjob's own."""
        try:
            return self.try_out(message, words=words)
        except TemplateError as error:
            self.broken = self.broken or error
            self._own_instead += 1
            return OUR_TEMPLATES.try_out(message, words=words)

    def problem(self) -> StageStop | None:
        """Return the error for the report, if certjob's own template was used instead of a broken one."""
        if self.broken is None:
            return None
        what = "1 message was" if self._own_instead == 1 else f"{self._own_instead:,} messages were"
        reason = f"{self.broken}; {what} written with certjob's own template instead"
        return StageStop(stage="mail", code=StageEnd.TEMPLATE, reason=reason, fault=str(self.broken))

    def try_out(self, message: str, *, words: Mapping[str, object]) -> RenderedMessage:
        """Return a message. The first line of the text template is the subject, which the page gets as a variable.

        Raises TemplateError with file and line.
        """
        self.look_into()
        language = words["language"]
        name = self._name(f"{message}.{language}.txt", f"{message}.txt")
        page = self._name(f"{message}.{language}.html", f"{message}.html")
        subject, _, rest = self._write(name, words=words).partition("\n")
        subject = re.sub(r"[ \t]+", " ", subject).strip()
        gap, _, text = rest.partition("\n")
        html = self._write(page, words={**words, "subject": subject})
        step = "put it into one line, then an empty one"
        for is_wrong, file, line, reason, next_step in (
            (not subject, name, 1, "the first line is the subject, and it is empty", "begin with the subject"),
            (gap.strip(), name, 2, "the subject takes more than the first line", step),
            (not text.strip(), name, None, "there is no text after the subject", "write one"),
            (not html.strip(), page, None, "the page is empty", "write one, or delete the file"),
        ):
            if is_wrong:
                shown = self._shown(self._path(file))
                raise TemplateError(reason, next_step=next_step, file=shown, line=line)
        return RenderedMessage(subject=subject, text=text.strip("\n") + "\n", html=html)

    def find_errors(self) -> Iterator[TemplateError]:
        """Yield the errors of the programme's files that show without a message, as in the syntax.

        Raises TemplateError if the folder cannot be read.
        """
        self.look_into()
        for path in sorted((self.folder or OUR_FOLDER).glob("[!.]*")):
            try:
                if path.suffix in _SUFFIXES:
                    self._load(path.name)
            except Exception as error:  # noqa: BLE001 - a template can raise any error
                yield self._explain(error, path.name, words={})

    def look_into(self) -> None:
        """Raise TemplateError if the folder cannot be read. Jinja ignores that."""
        folder = self.folder or OUR_FOLDER
        try:
            os.scandir(folder).close()
            os.stat(f"{folder}/.")  # noqa: PTH116 - a Path drops the dot, which checks the right to enter
        except OSError as error:
            reason = f"the folder {folder} cannot be read ({error.strerror})"
            step = "name one that certjob's user can read"
            raise TemplateError(reason, next_step=step, file="CERTJOB_TEMPLATES_DIR") from error

    def _name(self, own: str, for_all: str) -> str:
        """Return the template for one language, if the programme has one, otherwise the one for all languages."""
        return own if self._path(own).is_file() else for_all

    def _environment(self, *, page: bool) -> ImmutableSandboxedEnvironment:
        """Return an environment. The one for pages escapes all values, also in included files without ``.html``."""
        ours = FileSystemLoader(OUR_FOLDER)
        # utf-8-sig: some editors write a byte-order mark before the subject.
        theirs = [FileSystemLoader(self.folder, encoding="utf-8-sig")] if self.folder else []
        return ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([PrefixLoader({"certjob": ours}), *theirs, ours]),
            autoescape=page,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            auto_reload=False,
        )

    def _path(self, name: str) -> Path:
        """Return the file of a template; among certjob's own it may not exist."""
        own = self.folder / name if self.folder else None
        return own if own is not None and own.is_file() else OUR_FOLDER / name

    def _write(self, name: str, *, words: Mapping[str, object]) -> str:
        try:
            return self._load(name).render(words)
        except Exception as error:  # a template can raise any error
            raise self._explain(error, name, words=words) from error

    def _load(self, name: str) -> Template:
        return self._environments[name.endswith(".html")].get_template(name)

    def _explain(self, error: Exception, name: str, *, words: Mapping[str, object]) -> TemplateError:
        path, line = _place(error) or (self._path(name), None)
        reason, step = _reason(error, words=words)
        return TemplateError(reason, next_step=step, file=self._shown(path), line=line)

    def _shown(self, path: Path) -> str:
        if self.folder and path.is_relative_to(self.folder):
            return str(path.relative_to(self.folder))
        return f"certjob's own {path.name}"


OUR_TEMPLATES = Templates()
"""Only certjob's own templates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A message before its text is written."""

    message: OutgoingMessage
    words: Words

    def write(self, templates: Templates) -> OutgoingMessage:
        """Return the message with its subject, text and page."""
        written = templates.render(self.message.kind, words=self.words)
        return replace(self.message, subject=written.subject, text=written.text, html=written.html)


def _place(error: Exception) -> tuple[Path, int] | None:
    """Return the file and line of the error, or None if no template was read."""
    if isinstance(error, TemplateSyntaxError) and error.filename:
        return Path(error.filename), error.lineno
    frames = ((Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__))
    in_templates = [(file, line) for file, line in frames if file.suffix in _SUFFIXES]
    return in_templates[-1] if in_templates else None  # the innermost one


def _reason(error: Exception, *, words: Mapping[str, object]) -> tuple[str, str]:
    """Return why a template failed, and the next step.

    Most errors can quote a value in some form, so their text is left out.
    """
    match error:
        case TemplateSyntaxError():
            return " ".join(str(error.message).split()), "correct the line"
        case TemplateNotFound():
            return "there is no template of the name that the line gives", "correct the name, or add the file"
        case UnicodeDecodeError():
            return "the file is not in UTF-8", "save it in that encoding"
        case OSError():
            return f"the file cannot be read ({error.strerror})", "let certjob's user read it"
        case UndefinedError() if unknown := re.fullmatch(r"'(\w+)' is undefined", str(error.message)):
            near = difflib.get_close_matches(unknown[1], words, n=1)  # the name is the template's, not a value
            return error.message or "", f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(words))}"
    return f"{type(error).__name__}, with the data of one message, which are not shown here", "correct the line"
