"""The mentors of a hold are named, because a real revocation may be among wrong changes."""

import json
from datetime import timedelta

from certjob.domain.explanations import whole_date
from certjob.mail.messages.content import write_date
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.scene import Scene

HOLD = """
    INSERT INTO still_due (mentor_id, what, reason, as_of)
    SELECT id, 'held', %s, current_date FROM mentors WHERE member_no = %s
"""


def test_alerts_and_digest_name_the_mentors_of_a_hold(scene: Scene, here: Certjob) -> None:
    """Revocations and departures come first. The digest has twenty. The next step has the command for one mentor."""
    for number in range(1000, 1060):
        scene.expired(member_no=f"M{number}")
        scene.run_sql(HOLD, {1058: "revoked", 1059: "left"}.get(number, "ended"), f"M{number}")
    eva = scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    scene.facts.insert("coordinator_digests", coordinator_id=eva, digest_on=TODAY)

    first, *lines = here("alerts").stdout.splitlines()
    found = json.loads(here("alerts", "--json").stdout)["held_mentors"]
    scene.deliver(None, channel=scene.channel)

    assert "hlf:held:changes, hlf, since " in first
    assert "`certjob resync MENTOR`" in first
    reasons = ("M1058", "a certificate was revoked"), ("M1059", "has left"), ("M1000", "no certificate is in force")
    named = [f"Held back: hlf:held:changes, {number}, Kari Nordmann: {reason}" for number, reason in reasons]
    assert (lines[:3], len(lines), lines[-1]) == (named, 60, named[-1].replace("M1000", "M1057"))
    assert [each["member_no"] for each in found] == [line.split(", ")[1] for line in lines]
    assert (found[0]["alert_id"], found[0]["reason"]) == ("hlf:held:changes", "revoked")
    (page,) = scene.channel.sent
    assert page.text.index("Kari Nordmann (M1058): a certificate was revoked") < page.text.index("(M1059): has left")
    assert page.text.count(": no valid certificate") == 18
    assert "and 40 more" in page.text


def test_a_held_change_has_the_old_and_the_new_last_day(facts: Facts, here: Certjob) -> None:
    """The number for --allow is the number of names, in the plan, in `alerts` and in the digest."""
    old, new = today() + timedelta(days=500), today() + timedelta(days=499)
    hlf = facts.organisation(thresholds=())
    facts.insert("coordinators", organisation_id=hlf, email="eva@example.org", locale="nb")
    for _ in range(25):
        facts.certified_mentor(hlf, old)
    here("run")
    facts.connection.execute("UPDATE certificates SET expires_on = %s", (new,))
    facts.connection.execute("UPDATE mentors SET left_at = now() WHERE member_no = 'M1025'")

    plan, held = here("run", "--dry-run"), here("run")

    words = f"would end earlier: last day {whole_date(old)} → {whole_date(new)}"
    assert (plan.stdout.count(words), plan.stdout.count("has left")) == (24, 1)
    assert "--allow hlf=25`" in plan.stderr
    assert "--allow hlf=25`" in held.stderr
    first, *names = here("alerts").stdout.splitlines()
    assert "--allow hlf=25`" in first
    assert (len(names), sum(line.endswith(words) for line in names)) == (25, 24)
    days = [write_date(day, locale="nb").replace("\N{NO-BREAK SPACE}", " ") for day in (old, new)]
    digest = here("preview", "--digest", "eva@example.org").stdout
    assert digest.count(f"sertifikatet går ut tidligere (siste dag {days[0]} → {days[1]})") == 19
    assert "og 5 til" in digest
