"""A programme's own templates, tried in every language and situation before a night depends on them."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import meta, nodes

from certjob.errors import ConfigurationError, TemplateError
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import OUR_FOLDER, OUR_TEMPLATES, Templates, advice_about

SHOWN_PROBLEMS = 3
"""So many problems fit into the line that a command ends with."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateProblem:
    """One thing that is wrong with a file in a folder of templates."""

    file: str
    """Its path inside the folder."""
    line: int | None
    reason: str
    """What is wrong."""
    next_step: str

    def __str__(self) -> str:
        """The problem as a line for people, with what to do."""
        return str(self.to_error())

    def to_error(self) -> TemplateError:
        """Return the problem as an error."""
        return TemplateError(self.reason, file=self.file, line=self.line, next_step=self.next_step)


def open_templates(folder: Path | None) -> Templates:
    """Return the templates to write with; those in the folder of CERTJOB_TEMPLATES_DIR are tried first.

    Raises ConfigurationError when the folder does not exist, TemplateError when one of its files is broken.
    """
    if folder is None:
        return OUR_TEMPLATES
    problems = check_templates(folder)
    if not problems:
        return Templates(folder)
    first = problems[0]
    others = [problem.to_error().message for problem in problems[1:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        others.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
    reason = "; ".join([first.reason, *others])
    step = "`certjob check` says what to do about each" if others else first.next_step
    raise TemplateError(reason, file=f"CERTJOB_TEMPLATES_DIR: {first.file}", line=first.line, next_step=step)


def check_templates(folder: Path) -> list[TemplateProblem]:
    """Render every message that the folder has a part in, with made-up contents; return what is wrong, file by file.

    For `certjob check` and before each night: it needs no database, takes well under a second for a folder, and says
    each problem once, although every situation is tried. An empty list: a night can depend on the folder. Files that no
    message would ever use, because of their names, are wrong, too. Raises ConfigurationError when there is no such
    folder.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        message = f"CERTJOB_TEMPLATES_DIR: the folder {folder} cannot be read ({error.strerror})"
        raise ConfigurationError(message, next_step="name the one that holds your templates") from error
    problems: list[TemplateProblem] = []
    templates = Templates(folder)
    names = {path.name for path in entries}
    for slug, place in [("", folder), *((path.name, path) for path in entries if path.is_dir())]:
        if slug and not _SLUG.fullmatch(slug):
            if not any(is_message(file) for file in place.iterdir()):
                continue  # a folder of pieces that templates include
            reason, step = "no organisation can have that short name", "see `certjob organisation list`"
            problems.append(TemplateProblem(file=slug, line=None, reason=reason, next_step=step))
            continue
        problems.extend(_misnamed(place, slug=slug))
        in_both = names | {file.name for file in place.iterdir()}
        for message, language in itertools.product(SAMPLES, LANGUAGES):
            if not _has_part_in(message, in_both, language=language):
                continue  # ours alone, which certjob's own tests try
            problems.extend(_unknown_words(templates, message, slug=slug, language=language))
            problems.extend(_broken(templates, message, slug=slug, language=language))
    return list(dict.fromkeys(problems))


def is_message(file: Path) -> bool:
    """Whether a file is named as those of which a message is made, in whatever language."""
    return file.suffix in (".txt", ".html", ".words") and file.name.partition(".")[0] in SAMPLES


def _has_part_in(message: str, names: Iterable[str], *, language: str) -> bool:
    """Whether any of these files is the message's own, or a piece that ours are built on, such as their layout."""
    return any(
        name.startswith(f"{message}.{language}.")
        or name in (f"{message}.txt", f"{message}.html")
        or (not is_message(Path(name)) and (OUR_FOLDER / name).is_file())
        for name in names
    )


def _misnamed(place: Path, *, slug: str) -> Iterator[TemplateProblem]:
    """Find files that look like a message's and are none's: a language that there is not."""
    for file in sorted(place.iterdir()):
        language = file.name.partition(".")[2].rpartition(".")[0]
        for_all = file.suffix != ".words" and not language
        if is_message(file) and language not in LANGUAGES and not for_all:
            reason = f"nobody would ever get it: the languages are {', '.join(LANGUAGES)}"
            name = f"{slug}/{file.name}" if slug else file.name
            yield TemplateProblem(file=name, line=None, reason=reason, next_step="rename the file")


def _broken(templates: Templates, message: str, *, slug: str, language: str) -> Iterator[TemplateProblem]:
    for words in SAMPLES[message](language):
        try:
            templates.render(message, language=language, slug=slug, words=words, sample_data=True)
        except TemplateError as error:
            step = error.next_step or ""
            yield TemplateProblem(file=error.file, line=error.line, reason=error.reason, next_step=step)


def _unknown_words(templates: Templates, message: str, *, slug: str, language: str) -> Iterator[TemplateProblem]:
    """Find words that no such message has, also on lines that no sample reaches.

    Only in files that stand alone: what one takes from another file cannot be seen from outside.
    """
    words = {*next(SAMPLES[message](language))}
    for name, known in ((f"{message}.{language}.txt", words), (f"{message}.{language}.html", words | {"subject"})):
        environment = templates.environment(slug, page=name.endswith(".html"))
        try:
            source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
            tree = environment.parse(source)
        except Exception:  # noqa: BLE001, S112 - rendering it says what is wrong
            continue
        if any(tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport))):
            continue
        for word in sorted(meta.find_undeclared_variables(tree) - known - {*environment.globals}):
            line = min(found.lineno for found in tree.find_all(nodes.Name) if found.name == word)
            yield TemplateProblem(
                file=templates.shown(name, slug=slug),
                line=line,
                reason=f"'{word}' is undefined",
                next_step=advice_about(word, known),
            )
