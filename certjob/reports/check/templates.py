"""What `certjob check` finds in a folder of the programme's own templates."""

import difflib
import itertools
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from certjob.errors import ConfigurationError
from certjob.mail.messages import checking
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.samples import SAMPLES
from certjob.reports.check.findings import Finding, fail, failed_with, ok, warn

NAMES = {
    f"{message}.{rest}"
    for message in SAMPLES
    for rest in ("txt", "html", *(f"{language}.{form}" for language in LANGUAGES for form in ("txt", "html", "words")))
}
"""The files that messages are made from."""

_ALIKE = 0.8


def check_templates(folder: Path | None, *, slugs: Collection[str] | None) -> Iterator[Finding]:
    """Yield what is wrong in the folder, and what was probably meant otherwise.

    ``slugs`` are the organisations' short names; None: not known.
    """
    if folder is None:
        yield ok("templates", "certjob's own")
        return
    found: list[Finding] = []
    try:
        problems = checking.check_templates(folder)
    except ConfigurationError as error:
        yield failed_with("templates", error)
        return
    for place in (folder, *folder.rglob("*")):
        if place.exists() and place.stat().st_mode & stat.S_IWOTH:  # a link may lead nowhere
            said = f"everybody on this machine can change your messages: {place}"
            found.append(warn("templates", said, next_step="remove that right (chmod -R o-w)"))
            break
    for problem in problems:
        next_step = problem.next_step or ""
        end = " Until" if next_step.endswith("?") else "; until"
        step = f"{next_step}{end} then messages go out in certjob's own words"
        found.append(fail("templates", problem.message, next_step=step))
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if place != folder:
            found += _unknown_organisation(place, slugs=slugs)
        found += _lonely_files(place, folder=folder)
        found += _misspelt_files(place, folder=folder)
    yield from found or [ok("templates", "your own, tried in every language and situation")]


def _unknown_organisation(place: Path, *, slugs: Collection[str] | None) -> Iterator[Finding]:
    """Yield that no organisation has this name, of a folder that holds messages and not only pieces of them."""
    if slugs is None or place.name in slugs or not NAMES & _names_in(place):
        return
    near = difflib.get_close_matches(place.name, slugs, n=1)
    step = f"did you mean {near[0]}?" if near else "see `certjob organisation list`, and rename the folder"
    yield warn(
        "templates", f"no organisation has the short name {place.name}: nobody gets its messages", next_step=step
    )


def _lonely_files(place: Path, *, folder: Path) -> Iterator[Finding]:
    """Yield texts without their page and pages without their text: the other half of the mail is in other words."""
    names = _names_in(place)
    for message, language in itertools.product(SAMPLES, LANGUAGES):
        text, page = f"{message}.{language}.txt", f"{message}.{language}.html"
        if (text in names) != (page in names):
            own, missing = (text, page) if text in names else (page, text)
            what = "that a mail program shows first" if missing == page else "for mail programs that show no HTML"
            said = f"{_shown(place / own, folder)} stands alone: the part {what} stays in other words"
            yield warn("templates", said, next_step=f"add {_shown(place / missing, folder)}")


def _misspelt_files(place: Path, *, folder: Path) -> Iterator[Finding]:
    """Yield files of which no message is made, and whose name is much like that of one."""
    for name in sorted(_names_in(place) - NAMES):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=_ALIKE)
        if not near or name.startswith(near[0]):  # a copy such as reminder.nb.txt.bak
            continue
        said = f"no message is made from {_shown(place / name, folder)}"
        yield warn("templates", said, next_step=f"did you mean {near[0]}?")


def _names_in(place: Path) -> set[str]:
    return {file.name for file in place.iterdir() if file.is_file()}


def _shown(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder))
