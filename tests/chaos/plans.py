"""From a seed to a plan: the mentors, the changes to their facts, the commands and the faults in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import MAIL_FAULTS, Action, Fault, MailFault, Spot, When
from tests.chaos.population import Change, Deed, MentorPlan, draw_changes, draw_population
from tests.chaos.servers import APPLYING, NOT_APPLYING

FIRST_RANDOM_SEED = 1000
"""Smaller seeds are the places of the standard night."""
RUN, DELIVER = ("run",), ("deliver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, its fault, and the scripts of the servers."""

    words: tuple[str, ...] = RUN
    fault: Fault | None = None
    twin: tuple[str, ...] | None = None
    """A second process without a fault, which starts at the same time."""
    script: tuple[str, ...] = ()
    mail_script: tuple[MailFault, ...] = ()
    concurrency: int = 1
    attempts: int = 2


TIME_PASSES = "time passes"
"""Every lease expires and every retry is due, as by the next night."""
Step = Command | Sequence[Change] | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps of a run before the recovery."""

    seed: int
    population: Sequence[MentorPlan]
    steps: Sequence[Step]


STANDARD_POPULATION = (
    MentorPlan(number=1, days=-3),
    MentorPlan(number=2, days=-10),
    MentorPlan(number=3, days=20),
    MentorPlan(number=4),
    MentorPlan(number=5, days=-5, has_portal=False),
)
STANDARD_CHANGES = (
    Change(number=1, deed=Deed.RENEW),  # to be shown
    Change(number=4, deed=Deed.REVOKE),  # to be hidden
    Change(number=3, deed=Deed.EXTEND, days=5),  # another threshold
    Change(number=5, deed=Deed.EXTEND, days=6),  # the pause ends, and a reminder is due
)


def standard_night(command: Command, *, seed: int) -> Plan:
    """A quiet run, some changes, and this command."""
    return Plan(seed=seed, population=STANDARD_POPULATION, steps=(Command(), STANDARD_CHANGES, command))


def matrix(places: Mapping[Spot, int]) -> list[Command]:
    """Return a command for every place of the standard night and for every mail fault.

    A kill comes before and after each place. Each settle comes so late that another run has done the work.
    """
    sides = {Spot.STATEMENT: (When.BEFORE, When.AFTER), Spot.REQUEST: tuple(When), Spot.MAIL: (When.AFTER,)}
    faults = [
        Fault(spot=spot, number=number, when=when, action=Action.KILL)
        for spot, whens in sides.items()
        for number in range(1, places[spot] + 1)
        for when in whens
    ]
    faults += [
        Fault(spot=Spot.STATEMENT, number=number, action=Action.OVERTAKE, settle=settle)
        for settle, spot in (("portal_events", Spot.REQUEST), ("reminders", Spot.MAIL))
        for number in range(1, places[spot] + 1)
    ]
    return [
        *(Command(fault=fault, attempts=1) for fault in faults),
        *(Command(mail_script=(fault,)) for fault in MAIL_FAULTS),
    ]


def plan_for(seed: int, *, matrix: Sequence[Command] = ()) -> Plan:
    """Return the plan of a seed; seeds below FIRST_RANDOM_SEED are places of the matrix."""
    if seed < FIRST_RANDOM_SEED:
        return standard_night(matrix[seed], seed=seed)
    chance = Random(seed)
    population = draw_population(chance)
    steps: list[Step] = [draw_changes(chance, population, count=chance.randint(3, 9))]
    if chance.random() < 0.3:
        changes = draw_changes(chance, population, count=chance.randint(5, 9))
        steps += [Command(concurrency=4), changes]
    for _ in range(chance.choice([1, 1, 2])):
        steps += [TIME_PASSES] if chance.random() < 0.5 else []
        changes = draw_changes(chance, population, count=chance.randint(0, 4))
        steps += [_draw_command(chance, population), changes]
    return Plan(seed=seed, population=population, steps=tuple(steps))


def _draw_command(chance: Random, population: Sequence[MentorPlan]) -> Command:
    resync = ("resync", chance.choice([plan.member_no for plan in population if plan.has_portal]))
    twin = chance.choice([RUN, RUN, DELIVER, resync]) if chance.random() < 0.16 else None
    fault = _draw_fault(chance, alone=twin is None) if chance.random() < 0.75 else None
    script = tuple(chance.choices(["ok"] * 10 + _QUICK_ANSWERS, k=chance.choice([0, 4, 8, 16])))
    if fault and (fault.action, fault.spot) == (Action.STOP, Spot.REQUEST):
        script = (*["ok"] * (fault.number - 1), "hang")  # stop it in its call
    return Command(
        words=RUN if twin else chance.choice([RUN, RUN, RUN, DELIVER, resync]),
        fault=fault,
        twin=twin,
        script=script,
        mail_script=tuple(chance.choices(MAIL_FAULTS, k=chance.choice([0, 0, 0, 1, 2, 3]))),
        concurrency=chance.choice([1, 1, 2, 4]),
        attempts=chance.choice([1, 2, 2, 3]),
    )


_QUICK_ANSWERS = [name for name in (*APPLYING, *NOT_APPLYING) if name != "hang"]
"""A call that hangs takes 30 seconds."""


def _draw_fault(chance: Random, *, alone: bool) -> Fault:
    spot = chance.choice([Spot.STATEMENT, Spot.STATEMENT, Spot.REQUEST, Spot.MAIL])
    actions = [Action.KILL, Action.KILL, Action.KILL, Action.STOP, Action.STOP, Action.RESTART]
    number, settle = chance.choice([1, 1, 1, 2, 2, 3, 4]), ""
    if spot is Spot.STATEMENT:
        settle = chance.choice(["", "", "portal_events", "reminders"])
        number = number if settle else chance.randint(1, 75)
        # Locks behind a black hole would hold up another process for half a minute.
        actions += [Action.CUT, Action.BLACK_HOLE] if alone else [Action.CUT]
    when = chance.choice([When.BEFORE, When.AFTER])
    return Fault(spot=spot, number=number, when=when, action=chance.choice(actions), settle=settle)
