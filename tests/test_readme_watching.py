"""The examples of the section about watching certjob are what the commands print."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from freezegun import freeze_time

from tests.command_line import SECRET, run_in_process
from tests.facts import Facts
from tests.portal_answers import html
from tests.portal_server import PortalServer
from tests.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

README = Path(__file__).parent.parent / "README.md"
SECTION = "## Watching certjob"


def examples() -> Iterator[tuple[str, str]]:
    """Each command of the section and the output under it, in which ``…`` stands for what differs."""
    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    for block in section.split("\n    $ ")[1:]:
        command, *rest = block.splitlines()
        lines = [line[4:].rstrip() for line in itertools.takewhile(lambda line: not line or line[:4] == "    ", rest)]
        yield command, "\n".join(lines).strip()


def assert_printed(example: str, printed: str) -> None:
    """Line by line; an ellipsis stands for any text on its line."""
    pattern = re.escape(example).replace("…", "[^\n]*")
    assert re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.splitlines()).strip()), printed


@pytest.fixture
def hlf_and_lhl(facts: Facts) -> Facts:
    """One organisation that lacks nothing, and one without a coordinator."""
    hlf = facts.organisation("hlf")
    facts.organisation("lhl", portal=None)
    facts.connection.execute("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org')", (hlf,))
    return facts


def test_the_example_of_check(
    hlf_and_lhl: Facts, database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """A function that is not deployed, a login that is refused, a coordinator who is missing."""
    mailbox = Mailbox()
    with (
        PortalServer([html(404)], key=SECRET) as portal,
        real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server,
        freeze_time("2026-03-10 08:00"),
    ):
        result = run_in_process(
            "check",
            environment=bare_environment
            | {
                "CERTJOB_DATABASE_URL": database_url,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_PORTAL_KEY": SECRET,
                "CERTJOB_NOTIFY_URL": f"smtp://localhost:{server.port}",
                "CERTJOB_NOTIFY_USER": "post",
                "CERTJOB_NOTIFY_PASSWORD": SECRET,
                "CERTJOB_MAIL_FROM": "certjob@example.org",
                "SSL_CERT_FILE": str(CERTIFICATE),
            },
            folder=tmp_path,
        )

    assert_printed(dict(examples())["certjob check"], result.stdout.replace(*clock_line(result.stdout)))
    assert result.returncode == 2


def clock_line(printed: str) -> tuple[str, str]:
    """The clock of this machine is frozen and the server's is not: what is said about it, and what else would be."""
    (line,) = (line for line in printed.splitlines() if " clock: " in line)
    return line, "ok    clock: this machine and the database server agree"


def test_every_command_of_the_section_has_its_test() -> None:
    """A new example needs one."""
    assert {shlex.split(command)[1] for command, _ in examples()} == {"check"}
