"""A few long nights of the crash matrix, with every kind of trouble; `make chaos` does more than 500 short ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Action, Fault, MailTrouble, Manner, Phase, Spot, When, Word
from tests.chaos.one_run import perform
from tests.chaos.plans import (
    DELIVER,
    MAIL_SETTLE,
    PORTAL_SETTLE,
    RUN,
    STANDARD_POPULATION,
    Command,
    Plan,
    Step,
    TimePasses,
    plan_for,
)
from tests.chaos.population import LONG_DAYS, Change, Deed
from tests.support.own_server import data_folder


def _struck(
    action: Action, when: When, spot: Spot, number: int = 1, *, text: str = "", script: tuple[Word, ...] = ()
) -> Command:
    fault = Fault(spot=spot, number=number, when=when, action=action, text=text)
    return Command(fault=fault, script=script, attempts=1)


KILLED = (
    _struck(Action.KILL, When.BEFORE, Spot.STATEMENT, 25),
    Command(database_is_down=True),
    _struck(Action.KILL, When.AFTER, Spot.STATEMENT, text=PORTAL_SETTLE),
    _struck(Action.KILL, When.ANSWERED, Spot.REQUEST),
    _struck(Action.KILL, When.AFTER, Spot.MAIL),
    _struck(Action.KILL, When.BEFORE, Spot.STEP, 4),
    _struck(Action.KILL, When.BEFORE, Spot.TURN, 40),
    Command(portal_is_down=True, attempts=1),
    _struck(Action.KILL, When.BEFORE, Spot.MOMENT, 60),
)
DISTURBED = (
    _struck(Action.STOP, When.BEFORE, Spot.REQUEST, script=(Word.HANG,)),
    _struck(Action.TERMINATE, When.AFTER, Spot.STATEMENT, 30),
    _struck(Action.RESTART, When.BEFORE, Spot.STATEMENT, text=MAIL_SETTLE),
    _struck(Action.CUT, When.AFTER, Spot.STATEMENT, text=PORTAL_SETTLE),
    _struck(Action.OUTLAST, When.BEFORE, Spot.STATEMENT, text=PORTAL_SETTLE),
    _struck(Action.BLACK_HOLE_STOP, When.AFTER, Spot.STATEMENT, text=PORTAL_SETTLE),
    _struck(Action.OVERTAKE, When.BEFORE, Spot.REQUEST),
    _struck(Action.BLACK_HOLE_KILL, When.BEFORE, Spot.STATEMENT, 40),
)
FROM_INSIDE = (
    _struck(Action.LATE, When.BEFORE, Spot.RESULT, 5),
    _struck(Action.LATE, When.BEFORE, Spot.TIMER, script=(Word.ERROR, Word.THROTTLED_SECONDS)),
    _struck(Action.CANCEL, When.BEFORE, Spot.PUSH),
    Command(twin=RUN, concurrency=2, script=(Word.ERROR_AFTER_ACTING, Word.RESET_AFTER_ACTING, Word.CUT)),
    Command(twin=DELIVER, script=(Word.HTML_OK, Word.NO_JSON_AFTER_ACTING, Word.WRONG_KEY)),
)
MAIL = (
    Command(mail_script=(MailTrouble(Phase.CONNECT, Manner.DROP), MailTrouble(Phase.MAIL, Manner.GARBAGE))),
    Command(mail_script=(MailTrouble(Phase.EHLO, Manner.HANG), MailTrouble(Phase.RCPT, Manner.LATER))),
    Command(mail_script=(MailTrouble(Phase.STARTTLS, Manner.SURPLUS), MailTrouble(Phase.DATA, Manner.SURPLUS))),
    Command(mail_script=(MailTrouble(Phase.HANDSHAKE, Manner.GARBAGE), MailTrouble(Phase.BODY, Manner.DROP))),
    Command(mail_script=(MailTrouble(Phase.LOGIN, Manner.CLOSING), MailTrouble(Phase.DOT, Manner.GARBAGE))),
    Command(mail_script=(MailTrouble(Phase.REPLY, Manner.HANG), MailTrouble(Phase.QUIT, Manner.DROP))),
)
"""Each phase of a session, and all manners; `make chaos` has every pair of them."""
NIGHTS = {"killed": KILLED, "disturbed": DISTURBED, "from inside": FROM_INSIDE, "mail": MAIL}


def long_night(commands: Sequence[Command]) -> Plan:
    """One struck command after the other, before each the changes that give it pushes and mails to do."""
    steps: list[Step] = [Command()]
    for number, command in enumerate(commands):
        changes = (
            Change(number=1, deed=(Deed.RENEW, Deed.REVOKE)[number % 2], days=LONG_DAYS, serial=4 * number),
            Change(number=4, deed=(Deed.REVOKE, Deed.REINSTATE)[number % 2], days=LONG_DAYS, serial=4 * number + 1),
            Change(number=3, deed=Deed.EXTEND, days=5 + number % 2 * 40 + number, serial=4 * number + 2),
            Change(number=5, deed=Deed.EXTEND, days=50 - number % 2 * 40 - number, serial=4 * number + 3),
        )
        steps += [changes, TimePasses(), command]
    return Plan(seed=0, population=STANDARD_POPULATION, steps=tuple(steps))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL of this file's own: it is stopped with ``immediate``."""
    with data_folder("chaos") as folder, Cluster(folder) as running:
        yield running


@pytest.mark.parametrize("night", NIGHTS)
def test_nothing_is_lost_or_done_twice(night: str, cluster: Cluster, tmp_path: Path) -> None:
    """Whatever broke: once all is well, the portal, the reminders and the failures are as the facts ask for."""
    outcome = perform(long_night(NIGHTS[night]), cluster=cluster, folder=tmp_path)

    assert not outcome.complaints, str(outcome)
    assert [label for label, struck in [*outcome.struck, *outcome.troubles] if not struck] == [], outcome.struck


def test_a_seed_makes_a_night(cluster: Cluster, tmp_path: Path) -> None:
    """The same one each time, as `make chaos` repeats it."""
    assert plan_for(1002) == plan_for(1002) != plan_for(1003)

    outcome = perform(plan_for(1002), cluster=cluster, folder=tmp_path)

    assert not outcome.complaints, str(outcome)


def test_these_nights_hold_everything_that_can_go_wrong() -> None:
    commands = [command for night in NIGHTS.values() for command in night]
    faults = [command.fault for command in commands if command.fault]
    troubles = [trouble for command in MAIL for trouble in command.mail_script if trouble]

    assert {fault.action for fault in faults} == set(Action)
    assert {fault.spot for fault in faults} == set(Spot)
    assert {fault.when for fault in faults} == set(When)
    assert {trouble.phase for trouble in troubles} == set(Phase)
    assert {trouble.manner for trouble in troubles} == set(Manner)
