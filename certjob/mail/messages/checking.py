"""Test a programme's own templates with sample data, in every language and situation."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from certjob.errors import TemplateError
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import OUR_FOLDER, Templates

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def open_templates(folder: Path | None) -> Templates:
    """Return the templates of CERTJOB_TEMPLATES_DIR and certjob's own.

    Raises TemplateError if the folder does not exist or a file in it is broken.
    """
    problems = check_templates(folder) if folder is not None else []
    if not problems:
        return Templates(folder)
    first, *others = problems
    reason = f"{first.reason}; and {len(others)} more problems" if others else first.reason
    step = "`certjob check` says what to do about each" if others else first.next_step or ""
    raise TemplateError(reason, file=f"CERTJOB_TEMPLATES_DIR: {first.file}", line=first.line, next_step=step)


def check_templates(folder: Path) -> list[TemplateError]:
    """Render each message for which the folder has a file, with sample data, and return each error once.

    A folder with many organisations takes a few seconds. Raises TemplateError if a folder cannot be read.
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
        in_both = names | {file.name for file in place.iterdir()}
        for message, language in itertools.product(SAMPLES, LANGUAGES):
            if _has_part_in(message, in_both, language=language):
                problems.extend(_broken(templates, message, slug=slug, language=language))
    return list({str(problem): problem for problem in problems}.values())


def _has_part_in(message: str, names: Iterable[str], *, language: str) -> bool:
    """Return whether a file is a template of the message, or replaces a file that certjob's templates include."""
    return any(
        name.startswith(f"{message}.{language}.")
        or name in (f"{message}.txt", f"{message}.html")
        or (name.partition(".")[0] not in SAMPLES and (OUR_FOLDER / name).is_file())
        for name in names
    )


def _broken(templates: Templates, message: str, *, slug: str, language: str) -> Iterator[TemplateError]:
    for words in SAMPLES[message](language):
        try:
            templates.try_out(message, slug=slug, words=words)
        except TemplateError as error:
            yield error
