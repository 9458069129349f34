"""Three long runs with every kind of fault; `make chaos` does more than 500 short ones."""

from collections.abc import Sequence

import pytest

from tests.chaos.faults import Action, Fault, MailFault, Spot, When
from tests.chaos.plans import RUN, STANDARD_POPULATION, TIME_PASSES, Command, Plan, Step
from tests.chaos.population import Change, Deed
from tests.chaos.run import carry_out
from tests.support.own_server import Cluster


def _run(action: Action, when: When, spot: Spot, number: int = 1, *, settle: str = "", script: str = "") -> Command:
    fault = Fault(spot=spot, number=number, when=when, action=action, settle=settle)
    return Command(fault=fault, script=tuple(script.split(", ")) if script else (), attempts=1)


NIGHTS = {
    "killed": (
        _run(Action.KILL, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _run(Action.KILL, When.ANSWERED, Spot.REQUEST),
        _run(Action.KILL, When.BEFORE, Spot.STATEMENT, 40),
        _run(Action.KILL, When.AFTER, Spot.MAIL),  # last, because the recovery sends this mail again
    ),
    "disturbed": (
        _run(Action.STOP, When.BEFORE, Spot.REQUEST, script="hang"),
        _run(Action.RESTART, When.BEFORE, Spot.STATEMENT, settle="reminders"),
        _run(Action.CUT, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _run(Action.BLACK_HOLE, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _run(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="portal_events"),
        _run(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="reminders"),
    ),
    "answers and mail": (
        Command(
            twin=RUN,
            concurrency=2,
            script=("500 after applying", "reset after applying", "200, but the answer is cut"),
        ),
        Command(mail_script=(MailFault("GREETING", "dropped"), MailFault("RCPT", "450"), MailFault("DATA", "silent"))),
        Command(mail_script=(MailFault("MAIL", "421"), MailFault("BODY", "dropped"), MailFault("DOT", "garbage"))),
        Command(mail_script=(MailFault("REPLY", "silent"),)),
    ),
}
"""Every manner of a mail fault, most at the phases where a message may have arrived; `make chaos` has every pair."""


def long_night(commands: Sequence[Command]) -> Plan:
    """These commands one after the other, each after changes that need pushes and mails."""
    steps: list[Step] = [Command()]
    for number, command in enumerate(commands):
        odd = number % 2
        changes = (
            Change(number=1, deed=(Deed.RENEW, Deed.REVOKE)[odd]),
            Change(number=4, deed=(Deed.REVOKE, Deed.REINSTATE)[odd]),
            Change(number=3, deed=Deed.EXTEND, days=5 + odd * 40 + number),
            Change(number=5, deed=Deed.EXTEND, days=50 - odd * 40 - number),
        )
        steps += [changes, TIME_PASSES, command]
    return Plan(seed=0, population=STANDARD_POPULATION, steps=tuple(steps))


@pytest.mark.parametrize("night", NIGHTS)
def test_faults_of_a_night_lose_and_repeat_nothing(night: str, cluster: Cluster) -> None:
    """After the recovery the portal, the reminders and the failures follow the facts."""
    run = carry_out(long_night(NIGHTS[night]), cluster)

    assert not run.complaints, str(run)
    assert run.missed == []
