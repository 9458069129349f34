"""A programme's own templates, tried in every language and situation before a night depends on them."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from certjob.errors import TemplateError
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import OUR_FOLDER, Templates

SHOWN_PROBLEMS = 3
"""Problems that fit into the line that a command ends with."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def open_templates(folder: Path | None) -> Templates:
    """Return the templates to write with; those in the folder of CERTJOB_TEMPLATES_DIR are tried first.

    Raises TemplateError when the folder does not exist, or one of its files is broken.
    """
    problems = check_templates(folder) if folder is not None else []
    if not problems:
        return Templates(folder)
    first = problems[0]
    others = [problem.message for problem in problems[1:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        others.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
    reason = "; ".join([first.reason, *others])
    step = "`certjob check` says what to do about each" if others else first.next_step or ""
    raise TemplateError(reason, file=f"CERTJOB_TEMPLATES_DIR: {first.file}", line=first.line, next_step=step)


def check_templates(folder: Path) -> list[TemplateError]:
    """Render every message that the folder has a part in, with made-up contents; return what is wrong, file by file.

    Each problem is returned once, although every situation is tried; a few seconds for a folder of many organisations.
    A file whose name no message would ever use is wrong as well. Raises TemplateError when the folder, or one in it,
    cannot be read.
    """
    templates = Templates(folder, sample_data=True)
    templates.look_into("")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in entries:
        templates.look_into(path.name)
    problems: list[TemplateError] = []
    names = {path.name for path in entries}
    of_organisations = [path for path in entries if path.is_dir() and _SLUG.fullmatch(path.name)]
    for slug, place in [("", folder), *((path.name, path) for path in of_organisations)]:
        problems.extend(_misnamed(place, slug=slug))
        in_both = names | {file.name for file in place.iterdir()}
        for message, language in itertools.product(SAMPLES, LANGUAGES):
            if _has_part_in(message, in_both, language=language):  # else ours alone, which certjob's own tests try
                problems.extend(_broken(templates, message, slug=slug, language=language))
    return list({str(problem): problem for problem in problems}.values())


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


def _misnamed(place: Path, *, slug: str) -> Iterator[TemplateError]:
    """Find files that look like a message's and are none's: a language that there is not."""
    for file in sorted(place.iterdir()):
        language = file.name.partition(".")[2].rpartition(".")[0]
        for_all = file.suffix != ".words" and not language
        if is_message(file) and language not in LANGUAGES and not for_all:
            reason = f"nobody would ever get it: the languages are {', '.join(LANGUAGES)}"
            name = f"{slug}/{file.name}" if slug else file.name
            yield TemplateError(reason, file=name, next_step="rename the file")


def _broken(templates: Templates, message: str, *, slug: str, language: str) -> Iterator[TemplateError]:
    for words in SAMPLES[message](language):
        try:
            templates.try_out(message, language=language, slug=slug, words=words)
        except TemplateError as error:
            yield error
