"""The coordinators' page in a real browser. Without Chromium or a package registry the tests are skipped."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import deno
import pytest

from certjob import database
from tests.dashboard import browser as browsers
from tests.dashboard.browser import Browser, Page
from tests.database import supabase
from tests.looks.contrast import CONTRASTS
from tests.support.command_line import run_in_process, today
from tests.support.docs import ROOT
from tests.support.facts import Facts
from tests.support.own_server import Cluster, data_folder
from tests.support.portal_answers import Behaviour, error, ok
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

pytestmark = pytest.mark.browser

SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
EVA, PER, OLA = "eva@hlf.example", "per@lhl.example", "ola@hlf.example"
PICTURES = ROOT / "build/looks"
USERS = {EVA: UUID(int=1), PER: UUID(int=2), OLA: UUID(int=3)}
"""Eva and Per are coordinators, of hlf and of lhl. Ola is an ordinary user."""
FASTER = "{ const real = setInterval; setInterval = (act, delay) => real(act, delay / 100); }"
"""With this script an hour has 36 seconds for the page."""
REQUESTS = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/alerts?')).length"
"""The number of requests for alerts, two in each round."""
DOWN, UNKNOWN = error(503, "dynamics_unavailable"), error(404, "contact_not_found")
SESSIONS = "Object.keys(localStorage).map((key) => [key, JSON.parse(localStorage[key])])"


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """The folder with the installed stand-in."""
    if browsers.CHROMIUM is None:
        pytest.skip("the page was not tried: this needs Chromium (Debian: apt-get install chromium)")
    with data_folder("page") as folder:
        try:
            yield browsers.install(folder)
        except subprocess.CalledProcessError as problem:
            if b"integrity" in problem.stderr.lower():
                raise
            pytest.skip(f"the page was not tried: its packages cannot be installed ({problem.stderr[-200:]!r})")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that decodes its log, as Supabase's does for Realtime."""
    with data_folder("realtime") as folder, Cluster(folder / "server", wal_level="logical", fsync="off") as cluster:
        cluster.restart()
        yield cluster


@dataclass
class Site:
    """Two organisations, the portal, and the page."""

    facts: Facts
    portal: PortalServer
    browser: Browser
    run: Callable[..., "subprocess.CompletedProcess[str]"]
    organisations: dict[str, UUID] = field(default_factory=dict)

    def expired(self, slug: str = "hlf", *, name: str = "Kari Nordmann") -> UUID:
        """Enter a mentor whose certificate has ended."""
        mentor = self.facts.mentor(self.organisations[slug], full_name=name)
        self.facts.certificate(mentor, today().replace(year=today().year - 1))
        return mentor

    def fail_to_hide(self, answer: Behaviour = DOWN) -> UUID:
        """Let the portal answer like this when a run hides a mentor, which is an alert."""
        self.portal.default = answer
        mentor = self.expired()
        self.run("run")
        return mentor

    def enter(self, email: str = EVA, *, language: str = "nb-NO") -> Page:
        """Open the page and log in."""
        page = self.browser.open(language=language)
        page.log_in(email)
        return page

    def show_alert(self, answer: Behaviour = DOWN) -> Page:
        """Open the page with one alert, about a mentor whom this answer leaves visible."""
        self.fail_to_hide(answer)
        page = self.enter()
        page.sees("1 varsel")
        return page


@pytest.fixture
def site(cluster: Cluster, programs: Path, portal: PortalServer, tmp_path: Path) -> Iterator[Site]:
    """A migrated database like Supabase's, its coordinators, and the page."""
    name = f"page_{uuid4().hex}"
    with cluster.fresh_database(name, template="template0") as url, database.connect(url) as connection:
        supabase.set_up(connection)
        environment = {"CERTJOB_DATABASE_URL": url, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        environment |= portal.settings

        def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
            return run_in_process(*arguments, environment=environment, folder=tmp_path)

        assert run("db", "migrate").returncode == 0
        facts = Facts(connection)
        with Browser.start(programs, database_url=url, users=USERS) as browser:
            made = Site(facts=facts, portal=portal, browser=browser, run=run)
            for email, slug in ((EVA, "hlf"), (PER, "lhl")):
                made.organisations[slug] = facts.organisation(slug)
                row = {"id": USERS[email], "organisation_id": made.organisations[slug], "locale": "nb"}
                facts.insert("coordinators", email=email, full_name=email.partition("@")[0].title(), **row)
            yield made


def test_alert_appears_without_a_reload_and_a_retry_leads_to_a_push(site: Site) -> None:
    """Realtime reports the failure; the button makes the push due; the next delivery ends the alert."""
    page = site.enter()
    page.sees("Ingen varsler")

    site.fail_to_hide()

    page.sees("1 varsel", SENTENCE, "Kari Nordmann", "Portalen hadde problemer da vi prøvde sist", "Neste forsøk")
    page.click("[name=retry]")
    page.sees("Vi skjuler likepersonen på portalen", "Vi prøver igjen straks")
    assert page.evaluate("document.querySelector('[name=retry]')") is None, "one request is enough"
    assert site.facts.rows("SELECT next_attempt_at <= now() FROM portal_sync_events") == [(True,)]
    site.portal.default = ok()
    site.run("deliver")
    assert list(site.portal.visible.values()) == [False]
    page.reads_again()
    page.sees("Ingen varsler")
    assert site.browser.errors == []


def test_corrected_contact_id_ends_the_alert(site: Site) -> None:
    """A contact ID of another mentor, also the second time, and one that is not a UUID are rejected with words."""
    mentor = site.fail_to_hide(UNKNOWN)
    taken, right = uuid4(), uuid4()
    site.facts.mentor(site.organisations["lhl"], contact_id=taken)
    page = site.enter()
    page.sees("Kontakt‑ID‑en finnes ikke i Dynamics")
    assert page.evaluate("document.querySelector('[name=retry]')") is None, "a retry cannot help"

    for _ in range(2):  # the card does not change, so its button must work again
        page.fill("[name=contact_id]", str(taken))
        page.press("Enter")
        page.sees("allerede registrert på en annen likeperson")
        until(lambda: page.evaluate("document.querySelector('[name=correctContact]').disabled") is False)
        page.reads_again()
        page.sees("1 varsel")
    page.fill("[name=contact_id]", "M1042")
    page.press("Enter")
    assert page.evaluate("document.querySelector('[name=contact_id]').validity.patternMismatch") is True
    page.fill("[name=contact_id]", f" {right} ")
    page.press("Enter")
    page.sees("Kontakt‑ID‑en er lagret")

    assert site.facts.rows("SELECT dynamics_contact_id FROM mentors WHERE id = %s", mentor) == [(right,)]
    site.portal.default = ok()
    site.run("deliver")
    page.reads_again()
    page.sees("Ingen varsler")


def test_alert_ends_when_a_coordinator_has_hidden_the_contact_by_hand(site: Site) -> None:
    """It is stored with the reason and the user, and the next run prints it."""
    page = site.show_alert(UNKNOWN)

    page.click("summary")
    page.fill("[name=because]", "Skjult i Dynamics")
    page.press("Enter")
    page.sees("Vi kontrollerer det neste gang vi leser portalen")

    assert page.cards() == []
    stored = site.facts.rows("SELECT hidden_because, hidden_by FROM portal_sync_events")
    assert stored == [("Skjult i Dynamics", str(USERS[EVA]))]
    assert "was hidden by hand" in site.run("run").stderr


@pytest.mark.parametrize(
    ("push", "is_offered"),
    [
        ("last_error = 'not found'", True),
        ("claim_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute'", False),
        ("visible = true, wanted_until = current_date, shown_until = current_date + 9", False),
    ],
    ids=["open hide", "call under way", "last day that is too late"],
)
def test_button_for_hidden_by_hand_is_only_where_it_helps(site: Site, push: str, is_offered: bool) -> None:
    """The first button opens a field for the reason, the second one sends it."""
    site.portal.default = error(404, "contact_not_found")
    site.expired()
    site.run("run")
    site.facts.connection.execute(f"UPDATE certjob.portal_sync_events SET {push}")
    page = site.enter()
    page.sees("Kari Nordmann")

    assert ("Jeg har skjult kontakten" in page.describes()) is is_offered


def test_rejected_hidden_by_hand_keeps_what_was_typed(site: Site) -> None:
    """certjob calls the portal in the meantime. A reason of spaces is not sent. Everything works with the keyboard."""
    site.portal.default = error(404, "contact_not_found")
    site.expired()
    site.run("run")
    page = site.enter()
    page.sees("1 varsel")
    page.evaluate("(document.querySelector('.card summary').focus(), null)")

    page.press("Enter")
    page.press("Tab")
    assert page.evaluate("document.activeElement.name") == "because"
    page.fill("[name=because]", "  ")
    page.press("Enter")
    assert page.evaluate("document.querySelector('[name=because]').validity.patternMismatch") is True
    page.fill("[name=because]", "Skjult i Dynamics")
    claim = "claim_token = gen_random_uuid(), next_attempt_at = now() + interval '{} minute'"
    site.facts.connection.execute(f"UPDATE certjob.portal_sync_events SET {claim.format(1)}")
    page.press("Enter")
    page.sees("Det gikk ikke: a call to the portal may be under way; try again in five minutes")
    site.facts.connection.execute(f"UPDATE certjob.portal_sync_events SET {claim.format(-1)}")
    page.reads_again()
    until(lambda: page.evaluate("document.querySelector('[name=because]')?.value") == "Skjult i Dynamics")


def test_page_shows_only_the_own_organisation(site: Site) -> None:
    """Neither in the list nor by Realtime. A user who is no coordinator gets a sentence."""
    theirs = site.enter(PER)
    theirs.sees("Ingen varsler")
    ours = site.enter(EVA)
    ours.sees("Ingen varsler")
    no_ones = site.enter(OLA)
    no_ones.sees("Du er ikke registrert som koordinator")

    site.fail_to_hide()

    ours.sees("Kari Nordmann")
    theirs.reads_again()
    theirs.sees("Ingen varsler")
    assert [theirs.cards(), no_ones.cards()] == [[], []]


@pytest.mark.parametrize("email", [OLA, EVA], ids=["never one", "removed while the page is open"])
def test_user_who_is_no_coordinator_never_reads_that_everything_is_in_order(site: Site, email: str) -> None:
    """Row-level security then answers with no alerts, in each round."""
    site.fail_to_hide()
    page = site.browser.open(language="nb-NO", script=FASTER)
    page.log_in(email)
    page.sees("1 varsel" if email == EVA else "Du er ikke registrert som koordinator")

    site.facts.connection.execute("DELETE FROM certjob.coordinators WHERE id = %s", (USERS[email],))
    before = page.evaluate(REQUESTS)
    until(lambda: page.evaluate(REQUESTS) > before + 4)

    assert "Du er ikke registrert som koordinator" in page.text
    assert "i orden" not in page.text
    assert page.cards() == []


def test_answer_ends_with_the_attempt_that_it_is_about(site: Site) -> None:
    """Neither a failed retry nor a later alert about the mentor says again that certjob is about to hide them."""
    answer = "Vi skjuler likepersonen på portalen"
    site.fail_to_hide()
    page = site.enter()
    page.sees("Neste forsøk")
    page.click("[name=retry]")
    page.sees(answer, "Vi prøver igjen straks")
    page.reads_again()
    page.sees(answer)

    site.run("deliver")
    page.reads_again()
    page.sees("Neste forsøk")
    assert answer not in page.text

    site.portal.default = ok()
    site.run("resync", "M1001")
    page.reads_again()
    page.sees("Ingen varsler")
    site.portal.default = DOWN
    site.run("resync", "M1001")
    page.reads_again()
    page.sees("1 varsel")
    assert answer not in page.text


def test_most_harmful_alerts_are_read_first(site: Site) -> None:
    """The API returns at most 1,000 rows. The page says that there are more."""
    mentor = site.fail_to_hide()
    site.facts.connection.execute(
        "INSERT INTO certjob.cert_notification_log"
        " (mentor_id, threshold_days, cert_id, expires_on, status, failure_code, next_attempt_at)"
        " SELECT %s, 7, gen_random_uuid(), current_date, 'failed', 'no_address', now() - interval '3 days'"
        " FROM generate_series(1, 1001)",
        (mentor,),
    )

    page = site.enter()

    page.sees("1001 varsler og 1 til", SENTENCE)
    assert len(page.cards()) == 1001


def reads_nothing(page: Page) -> bool:
    """Return whether the page reads no alerts for a second."""
    before = page.evaluate(f"new Promise((done) => setTimeout(done, 1000, {REQUESTS}))")
    return bool(before == page.evaluate(REQUESTS))


def test_contact_id_that_was_not_saved_is_not_reported_as_saved(site: Site) -> None:
    """Another person has moved the mentor to another organisation in between."""
    site.fail_to_hide(UNKNOWN)
    page = site.enter()
    page.sees("Kontakt‑ID‑en finnes ikke i Dynamics")
    until(lambda: reads_nothing(page))  # it reads again once Realtime has begun

    with site.facts.connection.transaction():
        site.facts.connection.execute("SET LOCAL session_replication_role = replica")  # Realtime reports nothing
        site.facts.connection.execute("UPDATE mentors SET organisation_id = %s", (site.organisations["lhl"],))
    page.fill("[name=contact_id]", str(uuid4()))
    page.press("Enter")

    page.sees("Kontakt‑ID‑en er ikke lagret")


@pytest.mark.parametrize(
    "end",
    ["session.expires_at = 1", "session.access_token = 'no.longer.valid'"],
    ids=["not renewed", "token rejected"],
)
def test_lapsed_login_asks_to_log_in_again(site: Site, end: str) -> None:
    """Without a valid token, the API answers as to a visitor, who may not read the schema."""
    page = site.show_alert()

    page.evaluate(f"{SESSIONS}.forEach(([key, session]) => {{ {end}; localStorage[key] = JSON.stringify(session) }})")
    page.reads_again()

    page.sees("Du er logget ut. Logg inn for å se varslene.", "Passord")
    assert "permission denied" not in page.text
    assert page.cards() == []
    page.log_in(EVA)
    page.sees("1 varsel")


def test_logout_that_fails_is_reported(site: Site) -> None:
    """Otherwise someone would leave the computer logged in."""
    page = site.enter()
    page.sees("Ingen varsler")

    page.go_offline()
    page.click("#leave")

    page.sees("Serveren svarer ikke")


@pytest.mark.parametrize(
    "wrong",
    [
        "Object.defineProperty(globalThis, 'supabase', { set() {} })",
        "new MutationObserver(() => document.getElementById('project')?.setAttribute('data-url', 'supabase.example'))"
        ".observe(document, { childList: true, subtree: true })",
    ],
    ids=["no supabase.js, or another version", "address without https"],
)
def test_page_that_cannot_start_says_so(site: Site, wrong: str) -> None:
    """A blank page would not say whom to ask."""
    page = site.browser.open(language="nb-NO", script=wrong)

    page.sees("Siden kan ikke starte", "Gi beskjed til dem som drifter løsningen")


def test_each_button_is_described_by_its_mentor(site: Site) -> None:
    """Otherwise a screen reader lists equal buttons."""
    site.expired(name="Ola Hansen")
    site.fail_to_hide()
    page = site.enter()
    page.sees("2 varsler")

    described = page.describes()

    retries = described.pop("Prøv igjen nå")
    assert sorted(retries) == ["Kari Nordmann M1002", "Ola Hansen M1001"]


@pytest.mark.parametrize("address", ["https://other.example/", "http://127.0.0.1:9/"])
def test_page_connects_to_its_project_only(site: Site, address: str) -> None:
    """Even injected text could not send the alerts elsewhere."""
    page = site.enter()
    page.sees("Ingen varsler")

    rejected = page.evaluate(
        "new Promise((done) => { addEventListener('securitypolicyviolation', (event) => done(event.blockedURI));"
        f" fetch('{address}').catch(() => setTimeout(() => done(null), 500)) }})"
    )

    assert rejected == address


@pytest.mark.parametrize(
    ("locale", "browser_language", "login", "texts"),
    [
        ("nb", "en-GB", "Log in", ("Varsler", "Kan fortsatt være synlige på portalen (1)", "Siden ", "Prøv igjen nå")),
        ("nn", "nb-NO", "Logg inn", ("Varsel", "Kan framleis vere synlege på portalen (1)", "Sidan ", "Prøv igjen no")),
        ("en", "nn-NO", "Logg inn", ("Alerts", "May still be visible on the portal (1)", "Since ", "Try again now")),
    ],
    ids=["nb", "nn", "en"],
)
def test_page_speaks_the_coordinators_language(
    site: Site, locale: str, browser_language: str, login: str, texts: tuple[str, ...]
) -> None:
    """Before the login it is the browser's."""
    site.facts.connection.execute("UPDATE certjob.coordinators SET locale = %s", (locale,))
    site.fail_to_hide()
    page = site.browser.open(language=browser_language)
    page.sees(login)

    page.log_in(EVA)

    page.sees(SENTENCE, *texts)
    assert page.evaluate("document.documentElement.lang") == locale
    assert "undefined" not in page.text


def test_rejected_login_and_logout(site: Site) -> None:
    """A reload keeps the login; the button ends it. The focus is on the heading, and then in the login form."""
    page = site.browser.open(language="en-GB")

    page.log_in(EVA, password="wrong")
    page.sees("The email address or the password is wrong.")
    page.log_in(EVA)
    page.sees("Ingen varsler", EVA)
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.send("Page.reload")
    page.sees("Ingen varsler", EVA)
    page.click("#leave")

    page.sees("Password")
    assert EVA not in page.text
    assert page.evaluate("document.activeElement.name") == "email"


def test_reading_goes_on_after_an_interruption(site: Site) -> None:
    """Offline, and with a server that rejects the reading, the page says so and keeps the list."""
    page = site.show_alert()

    page.go_offline()
    page.sees("Du er ikke på nett. Varslene er fra", "Kari Nordmann")
    page.go_offline(offline=False)
    page.sees("1 varsel")
    site.facts.connection.execute("REVOKE SELECT ON certjob.alerts FROM authenticated")
    page.reads_again()
    page.sees("Vi fikk ikke hentet varslene", "permission denied", "Kari Nordmann")
    site.run("db", "migrate")
    page.reads_again()

    page.sees("1 varsel")


def test_page_reads_every_30_seconds_while_it_is_visible(site: Site) -> None:
    """Realtime does not report the end of a failure."""
    site.fail_to_hide()
    hidden = "Object.defineProperty(document, 'visibilityState', { get: () => window.isHidden ? 'hidden' : 'visible' })"
    page = site.browser.open(language="nb-NO", script=FASTER + hidden)
    page.log_in(EVA)
    page.sees("1 varsel")

    until(lambda: page.evaluate(REQUESTS) > 8)
    page.evaluate("window.isHidden = true")
    until(lambda: reads_nothing(page))
    page.evaluate("window.isHidden = false")
    site.portal.default = ok()
    site.run("resync", "M1001")

    page.sees("Ingen varsler")


def test_typed_text_and_focus_survive_a_new_reading(site: Site) -> None:
    """Also if the alert has changed, such as its number of calls. Everything works with the keyboard."""
    page = site.show_alert(UNKNOWN)
    page.fill("[name=contact_id]", "6f96")

    site.facts.connection.execute("UPDATE certjob.mentors SET full_name = 'Kari Hansen'")
    page.reads_again()
    page.sees("Kari Hansen")

    assert page.evaluate("document.activeElement.name + '=' + document.activeElement.value") == "contact_id=6f96"
    page.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Lagre"


TYPES = """
type Table = { Row: Record<string, unknown>; Insert: Table["Row"]; Update: Table["Row"]; Relationships: [] };
type Resync = { Args: { mentor_id: string }; Returns: { visible: boolean }[] };
type Certjob = { Tables: { alerts: Table; coordinators: Table }; Views: Record<string, never> };
export type Database = { certjob: Certjob & { Functions: { request_portal_resync: Resync } } };
"""


def test_typescript_of_the_examples_is_valid(programs: Path, tmp_path: Path) -> None:
    """With the supabase-js of the page, and types as Supabase generates them."""
    folder = shutil.copytree(programs, tmp_path / "snippet", symlinks=True, ignore=shutil.ignore_patterns("profile"))
    shutil.copy(ROOT / "docs/examples/coordinator.ts", folder)
    (folder / "database.types.ts").write_text(TYPES)

    command = [deno.find_deno_bin(), "check", "--quiet", "--frozen", "coordinator.ts"]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"NO_COLOR": "1"}, check=False, capture_output=True)

    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("locale", ["nb", "nn", "en"])
def test_page_fits_every_screen_and_has_enough_contrast(site: Site, locale: str) -> None:
    """No sideways scrolling from 320 pixels on, and level AA in both schemes. The pictures are in build/looks."""
    site.facts.connection.execute("UPDATE certjob.coordinators SET locale = %s", (locale,))
    PICTURES.mkdir(parents=True, exist_ok=True)
    everything(site)
    page = site.enter()
    until(lambda: len(page.cards()) == 7)
    assert any(" 60 " in card for card in page.cards()), "the held mentors, not the number that permits them"
    for width, height in ((320, 700), (375, 800), (800, 900), (1280, 900)):
        for scheme in ("light", "dark"):
            page.resize(width, dark=scheme == "dark", height=height)
            page.take_picture(PICTURES / f"page-{locale}-{width}-{scheme}.png")
            contrasts = page.evaluate(CONTRASTS)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert [found for found in contrasts if found[0] < 4.5] == []


def everything(site: Site) -> None:
    """Let the page have alerts of each kind, with long names."""
    organisation, facts = site.organisations["hlf"], site.facts
    unknown = uuid4()
    site.portal.decide = lambda request: UNKNOWN if request.contact_id == unknown else DOWN
    ended, late = today() - timedelta(days=1), today() + timedelta(days=400)
    for name, contact_id, last_day in (
        ("Kari Nordmann", unknown, ended),
        ("Margrethe Sivertsen-Haugland av Kristiansund", uuid4(), ended),
        ("Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle", None, ended),
        ("Per Hansen", uuid4(), late),
    ):
        mentor = facts.mentor(organisation, full_name=name, contact_id=contact_id, email=None)
        facts.certificate(mentor, last_day)
    facts.connection.execute("UPDATE mentors SET portal_visible = false WHERE full_name = 'Per Hansen'")
    site.run("run")
    reminder = {"threshold_days": 7, "cert_id": uuid4(), "expires_on": today(), "status": "failed"}
    facts.insert("cert_notification_log", mentor_id=mentor, failure_code="no_address", **reminder)
    busy = facts.mentor(organisation, full_name="Anne Busy")
    facts.insert("still_due", mentor_id=busy, what="not_reviewed", reason="locked", as_of=today())
    for _ in range(60):
        mentor = facts.mentor(organisation)
        facts.insert("still_due", mentor_id=mentor, what="held", reason="ended", as_of=today())
