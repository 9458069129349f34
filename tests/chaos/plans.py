"""From a seed to a plan: whom there is, what happens to them, which commands run and what goes wrong in each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.chaos.faults import EACH_MESSAGE, MAIL_TROUBLES, Action, Fault, MailWord, Phase, Spot, When, Word
from tests.chaos.population import Change, Deed, MentorPlan, draw_changes, draw_population

FIRST_RANDOM_SEED = 1000
"""Smaller seeds are the matrix: one place of the standard night each."""
RUN, DELIVER = ("run",), ("deliver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, what goes wrong in it, and how the outside answers."""

    words: tuple[str, ...] = RUN
    fault: Fault | None = None
    twin: tuple[str, ...] | None = None
    """A second process that starts at the same time; the fault is the first one's."""
    script: tuple[Word, ...] = ()
    mail_script: tuple[MailWord, ...] = ()
    concurrency: int = 1
    attempts: int = 2

    def __str__(self) -> str:
        how = f"{self.words} beside {self.twin}, {self.concurrency} at once, {self.attempts} attempts; {self.fault}"
        return f"{how}; portal: {', '.join(self.script)}; mail: {', '.join(map(str, self.mail_script))}"

    @property
    def label(self) -> str:
        """The kind of trouble, for the summary."""
        parts = [*([self.fault.label] if self.fault else []), *(["two at once"] if self.twin else [])]
        return " + ".join(parts) or ("portal's script" if self.script or self.mail_script else "none")


TIME_PASSES: tuple[Change, ...] = ()
"""Every lease runs out and every retry is due, as by the next night."""
Step = Command | tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a run does before it is put right again."""

    seed: int
    population: tuple[MentorPlan, ...]
    steps: tuple[Step, ...]
    deliver_first: bool = False
    """The first command of the recovery is the background job."""
    corrects_contacts: bool = True
    """Somebody corrects wrong and missing contacts before the recovery; else these stay blocked, by design."""


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
    Change(number=5, deed=Deed.EXTEND, days=6),  # to be lifted and reminded
)


def struck_night(command: Command, *, seed: int) -> Plan:
    """The standard night: everybody is as wanted, then facts change, and the command after that is struck."""
    return Plan(seed=seed, population=STANDARD_POPULATION, steps=(Command(), STANDARD_CHANGES, command))


def matrix(places: Mapping[Spot, int]) -> list[Command]:
    """Strike every place of the standard night: kills before and after each, and a mail server that fails in each way.

    A mail server that fails does so for the second message, as far as it can: then the connection is an old one. And
    each settle comes so late that another run has done the work.
    """
    sides = {
        Spot.STATEMENT: (When.BEFORE, When.AFTER),
        Spot.REQUEST: tuple(When),
        Spot.MAIL: (When.AFTER,),
        Spot.STEP: (When.BEFORE,),
    }
    struck = [
        Fault(spot=spot, number=number, when=when, action=Action.KILL)
        for spot, whens in sides.items()
        for number in range(1, places[spot] + 1)
        for when in whens
    ]
    struck += [
        Fault(spot=Spot.STATEMENT, number=number, action=Action.OVERTAKE, settle=settle)
        for settle, spot in (("portal_events", Spot.REQUEST), ("reminders", Spot.MAIL))
        for number in range(1, places[spot] + 1)
    ]
    return [
        *(Command(fault=fault, attempts=1) for fault in struck),
        *(Command(mail_script=(trouble,)) for trouble in MAIL_TROUBLES),
        *(Command(mail_script=(None, trouble)) for trouble in MAIL_TROUBLES if trouble.phase in EACH_MESSAGE),
    ]


def plan_for(seed: int, *, matrix: Sequence[Command] = ()) -> Plan:
    """The plan of a seed. Those below FIRST_RANDOM_SEED are places of the matrix, in its order."""
    if seed < FIRST_RANDOM_SEED:
        return struck_night(matrix[seed], seed=seed)
    chance = Random(seed)
    population = draw_population(chance)
    steps: list[Step] = []
    serial = 1

    def changes(low: int, high: int) -> None:
        nonlocal serial
        count = chance.randint(low, high)
        steps.append(tuple(draw_changes(chance, population, count=count, first_serial=serial)))
        serial += count

    if chance.random() < 0.3:
        steps.append(Command(concurrency=4))
        changes(5, 9)
    for _ in range(chance.choice([1, 1, 2])):
        steps.append(_draw_command(chance, population))
        changes(0, 4)
    return Plan(
        seed=seed,
        population=tuple(population),
        steps=tuple(_with_time_between([step for step in steps if step], Random(f"time {seed}"))),
        deliver_first=chance.random() < 0.25,
        corrects_contacts=chance.random() < 0.7,
    )


def _with_time_between(steps: Sequence[Step], chance: Random) -> Iterator[Step]:
    """Let the next night come before half of the commands; the others follow at once."""
    for number, step in enumerate(steps):
        if number and isinstance(step, Command) and chance.random() < 0.5:
            yield TIME_PASSES
        yield step


def _draw_command(chance: Random, population: Sequence[MentorPlan]) -> Command:
    kinds = {"fault": 60, "two at once": 16, "script": 22, "portal black hole": 2}
    kind = chance.choices(list(kinds), weights=list(kinds.values()))[0]
    resync = ("resync", chance.choice([plan.member_no for plan in population if plan.has_portal]))
    words = chance.choices([RUN, DELIVER, resync], weights=[7, 2, 1])[0]
    if kind == "portal black hole":
        return Command(script=(Word.OK, Word.HANG), concurrency=2, attempts=1)
    command = Command(
        words=words,
        script=_draw_script(chance),
        mail_script=_draw_mail_script(chance),
        concurrency=chance.choice([1, 1, 2, 4]),
        attempts=chance.choice([1, 2, 2, 3]),
    )
    if kind == "script":
        return command
    if kind == "two at once":
        fault = _draw_fault(chance, alone=False) if chance.random() < 0.75 else None
        return replace(command, words=RUN, twin=chance.choice([RUN, RUN, DELIVER, resync]), fault=fault)
    fault = _draw_fault(chance, alone=True)
    if fault.action is Action.STOP and fault.spot is Spot.REQUEST and chance.random() < 0.5:
        return replace(command, fault=fault, script=(*[Word.OK] * (fault.number - 1), Word.HANG))  # in its call
    return replace(command, fault=fault, script=command.script if chance.random() < 0.5 else ())


def _draw_mail_script(chance: Random) -> tuple[MailWord, ...]:
    """What becomes of some messages; after any trouble certjob makes a new connection, which may have its own."""
    words: list[MailWord] = []
    is_connected = False
    for _ in range(chance.choice([0, 0, 0, 2, 3, 5])):
        if chance.random() < 0.5:
            words.append(None)
            is_connected = True
        else:
            phases = set(Phase) - {Phase.QUIT} if not is_connected else EACH_MESSAGE
            words.append(chance.choice([trouble for trouble in MAIL_TROUBLES if trouble.phase in phases]))
            is_connected = False
    if words and chance.random() < 0.3:
        words.append(chance.choice([trouble for trouble in MAIL_TROUBLES if trouble.phase is Phase.QUIT]))
    return tuple(words)


_WEIGHTS = {Word.OK: 40, Word.SLOW: 10, Word.HANG: 0, Word.THROTTLED_LONG: 1, Word.WRONG_KEY: 1}
"""Silence is drawn only where something ends it: a call's deadline is half a minute."""


def _draw_script(chance: Random) -> tuple[Word, ...]:
    """Some answers, after which the portal is healthy."""
    weights = [_WEIGHTS.get(word, 4) for word in Word]
    return tuple(chance.choices(list(Word), weights=weights, k=chance.choice([0, 4, 8, 16])))


_NUMBERS = (1, 1, 1, 2, 2, 3, 4, 6)
"""Which request, mail or settle: a night with few changes has few."""
_DRAWN: dict[Spot, tuple[int, str, Sequence[int]]] = {
    Spot.STATEMENT: (50, "kill kill kill kill kill stop cut cut restart restart restart", range(1, 76)),
    Spot.REQUEST: (25, "kill kill kill kill kill stop stop stop restart", _NUMBERS),
    Spot.MAIL: (13, "kill kill kill kill kill stop stop stop restart", _NUMBERS),
    Spot.STEP: (6, "kill stop", range(1, 13)),
    Spot.TURN: (14, "stop stop late kill", range(1, 121)),
    Spot.RESULT: (6, "late", range(1, 16)),
    Spot.PUSH: (8, "cancel", (1, 1, 2, 3)),
}
"""How often each spot is drawn, what happens there, and at which of its places: such as most nights reach."""


def _draw_fault(chance: Random, *, alone: bool) -> Fault:
    spot = chance.choices(list(_DRAWN), weights=[weight for weight, *_ in _DRAWN.values()])[0]
    _, actions, numbers = _DRAWN[spot]
    action, when, settle = Action(chance.choice(actions.split())), When.BEFORE, ""
    if spot is Spot.STATEMENT:
        if alone and chance.random() < 0.15:  # what it keeps locked would hold up another for half a minute
            action = chance.choice([Action.BLACK_HOLE_KILL, Action.BLACK_HOLE_STOP, Action.BLACK_HOLE_STOP])
        settle = chance.choice(["", "", "portal_events", "reminders"])
        numbers = _NUMBERS if settle else numbers
    if spot in {Spot.STATEMENT, Spot.REQUEST, Spot.MAIL}:
        is_answered_kill = spot is Spot.REQUEST and action is Action.KILL
        when = chance.choice(list(When) if is_answered_kill else [When.BEFORE, When.AFTER])
    steps = chance.randint(0, 9)
    return Fault(spot=spot, number=chance.choice(numbers), when=when, action=action, settle=settle, steps=steps)
