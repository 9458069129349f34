"""A few long nights of the crash matrix, with every kind of trouble; `make chaos` does more than 500 short ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.faults import Action, Fault, MailTrouble, Manner, Phase, Spot, When, Word
from tests.chaos.plans import RUN, STANDARD_POPULATION, TIME_PASSES, Command, Plan, Step, plan_for
from tests.chaos.play import perform
from tests.chaos.population import Change, Deed
from tests.support.own_server import Cluster


def _struck(
    action: Action, when: When, spot: Spot, number: int = 1, *, settle: str = "", script: tuple[Word, ...] = ()
) -> Command:
    fault = Fault(spot=spot, number=number, when=when, action=action, settle=settle)
    return Command(fault=fault, script=script, attempts=1)


def _mail(*troubles: tuple[Phase, Manner]) -> Command:
    return Command(mail_script=tuple(MailTrouble(phase, manner) for phase, manner in troubles))


NIGHTS = {
    "killed": (
        _struck(Action.KILL, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _struck(Action.KILL, When.ANSWERED, Spot.REQUEST),
        _struck(Action.KILL, When.BEFORE, Spot.STEP, 4),
        _struck(Action.KILL, When.BEFORE, Spot.TURN, 40),
        _struck(Action.BLACK_HOLE_KILL, When.BEFORE, Spot.STATEMENT, 40),
        _struck(Action.KILL, When.AFTER, Spot.MAIL),  # the last: what follows sends that mail again, and must say so
    ),
    "disturbed": (
        _struck(Action.STOP, When.BEFORE, Spot.REQUEST, script=(Word.HANG,)),
        _struck(Action.RESTART, When.BEFORE, Spot.STATEMENT, settle="reminders"),
        _struck(Action.CUT, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _struck(Action.BLACK_HOLE_STOP, When.AFTER, Spot.STATEMENT, settle="portal_events"),
        _struck(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="portal_events"),
        _struck(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="reminders"),
    ),
    "from inside, and the mail": (
        _struck(Action.LATE, When.BEFORE, Spot.TURN, 60, script=(Word.ERROR, Word.THROTTLED_SECONDS)),
        Command(twin=RUN, concurrency=2, script=(Word.ERROR_AFTER_ACTING, Word.RESET_AFTER_ACTING, Word.CUT)),
        _mail((Phase.CONNECT, Manner.DROP), (Phase.RCPT, Manner.LATER), (Phase.DATA, Manner.SURPLUS)),
        _mail((Phase.LOGIN, Manner.CLOSING), (Phase.BODY, Manner.DROP), (Phase.DOT, Manner.GARBAGE)),
        _mail((Phase.REPLY, Manner.HANG)),
    ),
}
"""Of the mail all manners, most at the phases where a message may have arrived; `make chaos` has every pair."""


def long_night(commands: Sequence[Command]) -> Plan:
    """One struck command after the other, before each the changes that give it pushes and mails to do."""
    steps: list[Step] = [Command()]
    for number, command in enumerate(commands):
        odd, serial = number % 2, 4 * number
        changes = (
            Change(number=1, deed=(Deed.RENEW, Deed.REVOKE)[odd], serial=serial),
            Change(number=4, deed=(Deed.REVOKE, Deed.REINSTATE)[odd], serial=serial + 1),
            Change(number=3, deed=Deed.EXTEND, days=5 + odd * 40 + number, serial=serial + 2),
            Change(number=5, deed=Deed.EXTEND, days=50 - odd * 40 - number, serial=serial + 3),
        )
        steps += [changes, TIME_PASSES, command]
    return Plan(seed=0, population=STANDARD_POPULATION, steps=tuple(steps))


@pytest.mark.parametrize("night", NIGHTS)
def test_nothing_is_lost_or_done_twice(night: str, cluster: Cluster, tmp_path: Path) -> None:
    """Whatever broke: once all is well, the portal, the reminders and the failures are as the facts ask for."""
    outcome = perform(long_night(NIGHTS[night]), cluster=cluster, folder=tmp_path)

    assert not outcome.complaints, str(outcome)
    assert [label for label, is_reached in outcome.tried if not is_reached] == []


def test_a_seed_makes_a_night() -> None:
    """The same one each time, as `make chaos` repeats it."""
    assert plan_for(1002) == plan_for(1002) != plan_for(1003)
