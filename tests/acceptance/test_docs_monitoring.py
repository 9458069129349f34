"""The metrics, alert rules, log lines and findings on the page about monitoring are those that exist."""

import ast
import inspect
import json
import re
from datetime import date
from pathlib import Path
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from certjob import database
from certjob.database import Connection
from certjob.portal.comparison import Comparison, Reading, store
from certjob.reports.check import everything, in_database
from certjob.reports.metrics import read_metrics
from tests.support.command_line import run_in_process
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.nights import night
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

VERDICTS = {"ok", "warn", "fail", "skip", "failed_with"}
PAGE = read("docs/monitoring.md")


def test_every_metric_is_in_the_table(connection: Connection, facts: Facts) -> None:
    """And the page and the alert rules name no others."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    night(connection)
    reading = Reading(read_at=database.clock(connection), pages=1, visible=[])
    store(connection, Comparison(reading=reading), run_id=uuid4())
    metrics = read_metrics(connection, today=date(2026, 3, 10)).decode()
    written = {family.name for family in text_string_to_metric_families(metrics)}

    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `certjob_"))
    assert set(re.findall(r"certjob_[a-z_]+", rows)) == set(re.findall(r"certjob_[a-z_]+", PAGE)) == written
    assert set() < set(re.findall(r"certjob_[a-z_]+", read("docs/prometheus-rules.yml"))) <= written


def test_every_line_of_check_is_in_the_table() -> None:
    """With what it means when it is not ok; and no line that there is not."""
    said: set[str] = set()
    for module in (everything, in_database):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            match node:
                case ast.Call(func=ast.Name(id=verdict), args=[ast.Constant(value=str(name)), *_]) if (
                    verdict in VERDICTS
                ):
                    said.add(name)

    table = PAGE.partition("| the line |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    assert named - {"ok"} == said


def test_the_example_of_a_log_has_the_keys_of_the_log(
    facts: Facts, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """Line by line: the same event has the same keys, in this order."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    portal.default = error(404, "contact_not_found")

    result = run_in_process("run", "-v", environment=environment | {"CERTJOB_LOG_FORMAT": "json"}, folder=tmp_path)

    written = {line["event"]: line for line in map(json.loads, result.stderr.splitlines())}
    examples = [json.loads(line) for line in PAGE.splitlines() if line.startswith('    {"time"')]
    assert [line["event"] for line in examples] == ["event_failed", "attention"]
    for line in examples:
        event = written[line["event"]]
        assert list(line) == list(event)
        assert (line["level"], line["message"]) == (event["level"], event["message"])
