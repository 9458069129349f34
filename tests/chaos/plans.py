"""From a seed to a plan: the mentors, the changes to their facts, the commands and the faults in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import EACH_MESSAGE, MAIL_FAULTS, PHASES, Action, Fault, MailFault, Spot, When
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
    mail_script: tuple[MailFault | None, ...] = ()
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
    Change(number=1, deed=Deed.RENEW, serial=1),  # to be shown
    Change(number=4, deed=Deed.REVOKE),  # to be hidden
    Change(number=3, deed=Deed.EXTEND, days=5),  # another threshold
    Change(number=5, deed=Deed.EXTEND, days=6),  # the pause ends, and a reminder is due
)


def standard_night(command: Command, *, seed: int) -> Plan:
    """A quiet run, some changes, and this command."""
    return Plan(seed=seed, population=STANDARD_POPULATION, steps=(Command(), STANDARD_CHANGES, command))


def matrix(places: Mapping[Spot, int]) -> list[Command]:
    """Return a command for every place of the standard night and for every mail fault.

    A kill comes before and after each place. Each settle comes so late that another run has done the work. Each mail
    fault also comes in the second message of a connection, if it can.
    """
    sides = {
        Spot.STATEMENT: (When.BEFORE, When.AFTER),
        Spot.REQUEST: tuple(When),
        Spot.MAIL: (When.AFTER,),
        Spot.STEP: (When.BEFORE,),
    }
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
        *(Command(mail_script=(None, fault)) for fault in MAIL_FAULTS if fault.phase in EACH_MESSAGE),
    ]


def plan_for(seed: int, *, matrix: Sequence[Command] = ()) -> Plan:
    """Return the plan of a seed; seeds below FIRST_RANDOM_SEED are places of the matrix."""
    if seed < FIRST_RANDOM_SEED:
        return standard_night(matrix[seed], seed=seed)
    chance = Random(seed)
    population = draw_population(chance)
    steps: list[Step] = [draw_changes(chance, population, count=chance.randint(3, 9), first_serial=100)]
    if chance.random() < 0.3:
        changes = draw_changes(chance, population, count=chance.randint(5, 9), first_serial=200)
        steps += [Command(concurrency=4), changes]
    for number in range(chance.choice([1, 1, 2])):
        steps += [TIME_PASSES] if chance.random() < 0.5 else []
        changes = draw_changes(chance, population, count=chance.randint(0, 4), first_serial=300 + 10 * number)
        steps += [_draw_command(chance, population), changes]
    return Plan(seed=seed, population=population, steps=tuple(steps))


def _draw_command(chance: Random, population: Sequence[MentorPlan]) -> Command:
    resync = ("resync", chance.choice([plan.member_no for plan in population if plan.has_portal]))
    if chance.random() < 0.02:
        return Command(script=("ok", "hang"), concurrency=2, attempts=1)
    twin = chance.choice([RUN, RUN, DELIVER, resync]) if chance.random() < 0.16 else None
    fault = _draw_fault(chance, alone=twin is None) if chance.random() < 0.75 else None
    script = _draw_script(chance) if fault is None or chance.random() < 0.5 else ()
    if fault and not twin and (fault.action, fault.spot) == (Action.STOP, Spot.REQUEST) and chance.random() < 0.5:
        script = (*["ok"] * (fault.number - 1), "hang")  # stop it in its call
    return Command(
        words=RUN if twin else chance.choices([RUN, DELIVER, resync], weights=[7, 2, 1])[0],
        fault=fault,
        twin=twin,
        script=script,
        mail_script=_draw_mail_script(chance),
        concurrency=chance.choice([1, 1, 2, 4]),
        attempts=chance.choice([1, 2, 2, 3]),
    )


def _draw_script(chance: Random) -> tuple[str, ...]:
    """Return some answers of the portal. None hangs, because a call would wait for 30 seconds."""
    weights = dict.fromkeys(APPLYING | NOT_APPLYING, 4)
    weights |= {"ok": 40, "slow": 10, "hang": 0, "429 for 15 minutes": 1, "401": 1}
    return tuple(chance.choices([*weights], weights=[*weights.values()], k=chance.choice([0, 4, 8, 16])))


def _draw_mail_script(chance: Random) -> tuple[MailFault | None, ...]:
    """A fault or none for some messages. After a fault certjob connects again, and reaches the first phases again."""
    script: list[MailFault | None] = []
    for _ in range(chance.choice([0, 0, 0, 2, 3, 5])):
        phases = EACH_MESSAGE if script and script[-1] is None else PHASES[:-1]
        fault = chance.choice([fault for fault in MAIL_FAULTS if fault.phase in phases])
        script.append(chance.choice([None, fault]))
    if script and chance.random() < 0.3:
        script.append(chance.choice([fault for fault in MAIL_FAULTS if fault.phase == "QUIT"]))
    return tuple(script)


_NUMBERS = (1, 1, 1, 2, 2, 3, 4, 6)
"""Which request, mail or settle: a night with few changes has few."""
_DRAWN: dict[Spot, tuple[int, str, Sequence[int]]] = {
    Spot.STATEMENT: (50, "kill kill kill kill kill stop cut cut restart restart restart", range(1, 76)),
    Spot.REQUEST: (25, "kill kill kill kill kill stop stop stop restart", _NUMBERS),
    Spot.MAIL: (13, "kill kill kill kill kill stop stop stop restart", _NUMBERS),
    Spot.STEP: (6, "kill stop", range(1, 13)),
    Spot.TURN: (14, "stop stop late kill", range(1, 121)),
}
"""The weight of each spot, its actions, and the places that most nights reach."""


def _draw_fault(chance: Random, *, alone: bool) -> Fault:
    spot = chance.choices(list(_DRAWN), weights=[weight for weight, *_ in _DRAWN.values()])[0]
    _, actions, numbers = _DRAWN[spot]
    action, when, settle = Action(chance.choice(actions.split())), When.BEFORE, ""
    if spot is Spot.STATEMENT:
        if alone and chance.random() < 0.15:  # its locks would hold up another process for half a minute
            action = chance.choice([Action.BLACK_HOLE_KILL, Action.BLACK_HOLE_STOP, Action.BLACK_HOLE_STOP])
        settle = chance.choice(["", "", "portal_events", "reminders"])
        numbers = _NUMBERS if settle else numbers
    if spot in {Spot.STATEMENT, Spot.REQUEST, Spot.MAIL}:
        is_answered_kill = spot is Spot.REQUEST and action is Action.KILL
        when = chance.choice(list(When) if is_answered_kill else [When.BEFORE, When.AFTER])
    return Fault(spot=spot, number=chance.choice(numbers), when=when, action=action, settle=settle)
