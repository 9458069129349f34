"""A walk through every command, on an empty migrated database, over any kind of connection."""

import email
import shlex
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tests.support.bounces import postfix
from tests.support.command_line import commands, run_in_process, today
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

STEPS = (
    (0, "organisation set hlf --portal dynamics --coordinator 'Eva <eva@example.org>' --contact-email eva@hlf.example"),
    (0, "load people.csv --json"),
    (0, "edge-function functions --json"),
    (0, "list"),
    (3, "run"),
    (0, "organisation set hlf --coordinator '9b1f1c9e-0000-4000-8000-000000000001 Eva Dahl <eva@example.org>'"),
    (0, "organisation show"),
    (0, "organisation set hlf --coordinator gone@example.org --sender 'HLF <post@hlf.example>'"),
    (0, "organisation set hlf --remove-coordinator gone@example.org"),
    (0, "preview M2"),
    (0, "alerts --retry-all"),
    (3, "deliver"),
    (0, "reconcile"),
    (0, "resync M1"),
    (0, "pause M2 --because complaint"),
    (0, "unpause M2 --reason complaint"),
    (0, "changes"),
    (0, "explain M1"),
    (0, "load renewed.csv"),
    (3, "run"),
    (0, "bounces"),
    (3, "check --json"),
    (3, "status"),
    (0, "acknowledge ALERT --because holiday --until {tomorrow}"),
    (0, "db prune --older-than 3y"),
)
"""From the first file to a quiet night: exit codes and commands. The portal is down at first; M3 has no address."""


def assert_every_command_works(url: str, *, facts: Facts, environment: Mapping[str, str], folder: Path) -> None:
    """Lock, insert, change and delete rows in every table; ``facts`` reads the result."""
    contact_id, soon, ended = uuid.uuid4(), today() + timedelta(days=20), today() - timedelta(days=1)
    header = "organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on\n"
    (folder / "people.csv").write_text(
        f"{header}hlf,M1,Ærlig Ødegård,kari@example.org,{contact_id},likeperson,2020-01-01,{ended}\n"
        f"hlf,M2,Ola,ola@example.org,{uuid.uuid4()},likeperson,2020-01-01,{soon}\n"
        f"hlf,M3,Åse,,{uuid.uuid4()},likeperson,2020-01-01,{soon}\n"
    )
    (folder / "renewed.csv").write_text(
        f"{header}hlf,M1,,kari@example.org,{contact_id},likeperson,2026-01-02,2032-02-03\n"
    )
    steps = [(code, command.format(tomorrow=today() + timedelta(days=1))) for code, command in STEPS]
    here = facts.connection.info.dbname  # `check` warns of other tests' logins, which are the whole server's
    facts.connection.execute(f"REVOKE CONNECT ON DATABASE {here} FROM PUBLIC".encode())

    report = b""
    with PortalServer([error(503, "dynamics_unavailable")] * 3) as portal:
        mail = {"CERTJOB_NOTIFY_URL": f"maildir:{folder / 'mail'}", "CERTJOB_MAIL_FROM": "post@hlf.example"}
        settings = portal.settings | mail | {"CERTJOB_DATABASE_URL": url}
        for code, command in steps:
            if command == "list":
                facts.connection.execute(
                    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
                    " SELECT id, 'illness', 'eva' FROM mentors WHERE member_no = 'M2'"
                )
            if command.startswith("acknowledge"):
                ((alert_id,),) = facts.rows("SELECT alert_id FROM alerts WHERE member_no = 'M3'")
                command = command.replace("ALERT", str(alert_id))  # noqa: PLW2901 - the id has the number of a row
            if command.startswith("bounces"):
                mails = [email.message_from_bytes(path.read_bytes()) for path in (folder / "mail" / "new").iterdir()]
                (message_id,) = (mail["Message-ID"] for mail in mails if "ola@example.org" in mail["To"])
                report = postfix(message_id, "ola@example.org")
            result = run_in_process(
                *shlex.split(command), environment=dict(environment) | settings, folder=folder, given=report
            )
            assert result.returncode == code, (command, result)

    ran = {name for name in commands() for _, done in steps if f"certjob {done} ".startswith(f"{name} ")}
    assert ran == commands().keys() - {"certjob db migrate"}, "a new command belongs in here, too"
    assert portal.visible[contact_id] is True
    for table, condition in (
        ("coordinators", "id = '9b1f1c9e-0000-4000-8000-000000000001'"),
        ("mentor_pauses", "lifted_by = 'certjob'"),
        ("cert_notification_log", "failure_code = 'wrong_address'"),
        ("coordinator_digests", "status = 'sent'"),
        ("certificates", "issued_on = '2026-01-02' AND expires_on = '2032-02-03' AND status = 'valid'"),
    ):
        assert facts.rows(f"SELECT count(*) FROM {table} WHERE {condition}") == [(1,)], table
