"""One long run with the main kinds of faults; `make chaos` does hundreds of short ones with all of them."""

from collections.abc import Sequence

from tests.chaos.faults import Action, Fault, MailFault, Spot, When
from tests.chaos.plans import STANDARD_POPULATION, TIME_PASSES, Command, Plan, Step
from tests.chaos.population import Change, Deed
from tests.chaos.run import carry_out
from tests.support.own_server import Cluster


def interrupted(action: Action, when: When, spot: Spot, *, settle: str = "") -> Command:
    """Return a run with this fault at the first such place."""
    return Command(fault=Fault(spot=spot, number=1, when=when, action=action, settle=settle), attempts=1)


COMMANDS = (
    interrupted(Action.KILL, When.AFTER, Spot.STATEMENT, settle="portal_events"),
    interrupted(Action.KILL, When.ANSWERED, Spot.REQUEST),
    interrupted(Action.CUT, When.AFTER, Spot.STATEMENT, settle="portal_events"),
    interrupted(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="portal_events"),
    interrupted(Action.OVERTAKE, When.BEFORE, Spot.STATEMENT, settle="reminders"),
    Command(mail_script=(MailFault("RCPT", "450"), MailFault("BODY", "dropped"))),
    interrupted(Action.KILL, When.AFTER, Spot.MAIL),  # last, because the recovery sends this mail again
)


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


def test_faults_of_a_night_lose_and_repeat_nothing(cluster: Cluster) -> None:
    """After the recovery the portal, the reminders and the failures follow the facts."""
    run = carry_out(long_night(COMMANDS), cluster)

    assert not run.complaints, str(run)
    assert run.missed == []
