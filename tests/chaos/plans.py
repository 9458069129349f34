"""From a seed to a plan: whom there is, what happens to them, which commands run and what goes wrong in each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from certjob import database
from tests.chaos.faults import EACH_MESSAGE, MAIL_TROUBLES, Action, Fault, MailWord, Phase, Spot, When, Word
from tests.chaos.population import LONG_DAYS, Change, Deed, MentorPlan, Shape, draw_changes, draw_population

FIRST_RANDOM_SEED = 1000
"""Smaller seeds are the matrix: one place of the standard night each."""

RUN, DELIVER = ("run",), ("deliver",)


def beginning_of(query: str) -> str:
    """The text of one of certjob's statements up to its first parameter, by which the proxy knows it."""
    return database.query(query).decode().partition("%(")[0].strip()


PORTAL_SETTLE = beginning_of("settle_portal_events")
MAIL_SETTLE = beginning_of("settle_reminders")


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
    database_is_down: bool = False
    portal_is_down: bool = False

    def __str__(self) -> str:
        said = [" ".join(self.words)]
        said += [f"beside {' '.join(self.twin)}"] if self.twin else []
        if self.fault:
            said.append(f"{self.fault.label} {self.fault.number}")
        said += ["the database is down"] if self.database_is_down else []
        said += ["the portal is down"] if self.portal_is_down else []
        said += [f"portal: {', '.join(self.script)}"] if self.script else []
        said += [f"mail: {', '.join(str(word or 'fine') for word in self.mail_script)}"] if self.mail_script else []
        return "; ".join(said) + f" ({self.concurrency} at once, {self.attempts} attempts)"

    @property
    def label(self) -> str:
        """The kind of trouble, for the summary."""
        parts = ["database down"] if self.database_is_down else []
        parts += ["portal down"] if self.portal_is_down else []
        parts += [self.fault.label] if self.fault else []
        parts += ["two at once"] if self.twin else []
        return " + ".join(parts) or ("portal's script" if self.script or self.mail_script else "none")


@dataclass(frozen=True, slots=True)
class TimePasses:
    """Every lease runs out and every retry is due, as by the next night."""


Step = Command | tuple[Change, ...] | TimePasses


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

    @property
    def commands(self) -> list[Command]:
        return [step for step in self.steps if isinstance(step, Command)]


STANDARD_POPULATION = (
    MentorPlan(number=1, shape=Shape.EXPIRED, days=-3),
    MentorPlan(number=2, shape=Shape.EXPIRED, days=-10),
    MentorPlan(number=3, shape=Shape.EXPIRING, days=20),
    MentorPlan(number=4, shape=Shape.VALID),
    MentorPlan(number=5, shape=Shape.EXPIRED, days=-5, has_portal=False),
)
STANDARD_CHANGES = (
    Change(number=1, deed=Deed.RENEW, days=LONG_DAYS, serial=1),  # to be shown
    Change(number=4, deed=Deed.REVOKE, days=LONG_DAYS, serial=2),  # to be hidden
    Change(number=3, deed=Deed.EXTEND, days=5, serial=3),  # another threshold
    Change(number=5, deed=Deed.EXTEND, days=6, serial=4),  # to be lifted and reminded
)


def struck_night(command: Command, *, seed: int) -> Plan:
    """The standard night: everybody is as wanted, then facts change, and the command after that is struck."""
    return Plan(seed=seed, population=STANDARD_POPULATION, steps=(Command(), STANDARD_CHANGES, command))


def matrix(*, statements: int, requests: int, mails: int, steps: int) -> list[Command]:
    """Strike every place of the standard night: kills before and after each, and a mail server that fails in each way.

    A mail server that fails does so for the second message, as far as it can: then the connection is an old one.
    """
    places = [
        (spot, number, when)
        for spot, count, sides in (
            (Spot.STATEMENT, statements, (When.BEFORE, When.AFTER)),
            (Spot.REQUEST, requests, tuple(When)),
            (Spot.MAIL, mails, (When.AFTER,)),
            (Spot.STEP, steps, (When.BEFORE,)),
        )
        for number in range(1, count + 1)
        for when in sides
    ]
    kills = [Fault(spot=spot, number=number, when=when, action=Action.KILL) for spot, number, when in places]
    return [
        *(Command(fault=fault, attempts=1) for fault in kills),
        *(Command(mail_script=(trouble,)) for trouble in MAIL_TROUBLES),
        *(Command(mail_script=(None, trouble)) for trouble in MAIL_TROUBLES if trouble.phase in EACH_MESSAGE),
    ]


def plan_for(seed: int, *, matrix: Sequence[Command] = ()) -> Plan:
    """The plan of a seed. Those below FIRST_RANDOM_SEED are places of the matrix, in its order."""
    if seed < FIRST_RANDOM_SEED:
        return struck_night(matrix[seed], seed=seed)
    return _random(seed)


def _random(seed: int) -> Plan:
    chance = Random(seed)
    population = draw_population(chance)
    steps: list[Step] = []
    serial = 1

    def changes(low: int, high: int) -> None:
        nonlocal serial
        count = chance.randint(low, high)
        steps.append(tuple(draw_changes(chance, population, count=count, first_serial=serial)))
        serial += count

    match chance.choice(["clean", "queued", "struck", "struck"]):
        case "clean":
            steps.append(Command(concurrency=4))
            changes(5, 9)
        case "queued":
            steps.append(Command(words=("run", "--no-deliver")))
        case "struck":
            pass
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
            yield TimePasses()
        yield step


def _draw_command(chance: Random, population: Sequence[MentorPlan]) -> Command:
    kind = chance.choices(
        ["fault", "two at once", "script", "database down", "portal down", "portal black hole"],
        weights=[60, 16, 17, 2, 4, 1],
    )[0]
    with_portal = [plan.member_no for plan in population if plan.has_portal]
    words = chance.choices([RUN, DELIVER, ("resync", chance.choice(with_portal))], weights=[7, 2, 1])[0]
    script = _draw_script(chance)
    mail_script = _draw_mail_script(chance)
    rest: dict[str, Any] = {"mail_script": mail_script, "concurrency": chance.choice([1, 1, 2, 4])}
    rest["attempts"] = chance.choice([1, 2, 2, 3])
    if kind == "two at once":
        fault = _draw_fault(chance, alone=False) if chance.random() < 0.75 else None
        twin = chance.choice([RUN, RUN, DELIVER, ("resync", chance.choice(with_portal))])
        return Command(twin=twin, fault=fault, script=script, **rest)
    if kind == "database down":
        return Command(words=words, database_is_down=True)
    if kind == "portal down":
        return Command(words=words, portal_is_down=True, **rest | {"attempts": 1})
    if kind == "portal black hole":
        return Command(words=RUN, script=(Word.OK, Word.HANG), concurrency=2, attempts=1)
    fault = None
    if kind == "fault":
        fault = _draw_fault(chance, alone=True)
        if chance.random() < 0.5:
            script = ()  # so that it gets as far as the place of the fault
        if fault.action is Action.OUTLAST:
            # One settles while nobody else's call is under way.
            rest["concurrency"], script, words = 1, (), RUN
        if fault.spot is Spot.TIMER:
            # A timer runs out where something is waited for.
            script, rest["attempts"] = (Word.ERROR, Word.THROTTLED_SECONDS), 2
        if fault.action is Action.STOP and fault.spot is Spot.REQUEST and chance.random() < 0.5:
            script = (*[Word.OK] * (fault.number - 1), Word.HANG)  # it is stopped in the middle of a call
    return Command(words=words, fault=fault, script=script, **rest)


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


_NUMBERS = (1, 1, 1, 2, 2, 3, 4, 6)
"""Which request, mail or settle: a night with few changes has few."""

_SPOTS = {Spot.STATEMENT: 50, Spot.REQUEST: 25, Spot.MAIL: 13, Spot.MOMENT: 12, Spot.STEP: 6}
_SPOTS |= {Spot.TURN: 14, Spot.RESULT: 6, Spot.TIMER: 4, Spot.PUSH: 8}

_WEIGHTS = (
    {Word.OK: 40, Word.SLOW: 10}
    | {Word.HANG: 0}  # only where something ends it: a call's deadline is half a minute
    | dict.fromkeys((Word.THROTTLED_SECONDS, Word.THROTTLED_DATE, Word.HTML_OK), 2)
    | dict.fromkeys((Word.THROTTLED_LONG, Word.TOO_LARGE, Word.REDIRECT, Word.WRONG_KEY), 1)
)


def _draw_script(chance: Random) -> tuple[Word, ...]:
    """Some answers, after which the portal is healthy."""
    words = list(Word)
    return tuple(
        chance.choices(words, weights=[_WEIGHTS.get(word, 4) for word in words], k=chance.choice([0, 4, 8, 16]))
    )


def _draw_fault(chance: Random, *, alone: bool) -> Fault:
    """A fault at a place that most nights reach."""
    spot = chance.choices(list(_SPOTS), weights=list(_SPOTS.values()))[0]
    match spot:
        case Spot.STATEMENT:
            return _draw_statement_fault(chance, alone=alone)
        case Spot.MOMENT:
            action = chance.choice([Action.KILL, Action.KILL, Action.STOP, Action.TERMINATE, Action.RESTART])
            return Fault(spot=spot, number=chance.randint(0, 250), action=action)
        case Spot.STEP:
            action = chance.choice([Action.KILL, Action.STOP])
            return Fault(spot=spot, number=chance.randint(1, 12), action=action)
        case Spot.REQUEST | Spot.MAIL:
            actions = {Action.KILL: 5, Action.STOP: 3, Action.TERMINATE: 1, Action.RESTART: 1, Action.OVERTAKE: 4}
            action = chance.choices(list(actions), weights=list(actions.values()))[0]
            sides = list(When) if spot is Spot.REQUEST and action is Action.KILL else [When.BEFORE, When.AFTER]
            return Fault(spot=spot, number=chance.choice(_NUMBERS), when=chance.choice(sides), action=action)
        case Spot.TURN:
            action = chance.choices([Action.STOP, Action.LATE, Action.KILL], weights=[5, 3, 2])[0]
            return Fault(spot=spot, number=chance.randint(1, 120), action=action)
        case Spot.PUSH:
            steps = chance.randint(0, 9)
            return Fault(spot=spot, number=chance.choice((1, 1, 2, 3)), action=Action.CANCEL, steps=steps)
        case Spot.TIMER:
            return Fault(spot=spot, number=1, action=Action.LATE)
        case _:
            return Fault(spot=spot, number=chance.randint(1, 15), action=Action.LATE)


def _draw_statement_fault(chance: Random, *, alone: bool) -> Fault:
    actions = {Action.KILL: 8, Action.STOP: 2, Action.CUT: 3, Action.TERMINATE: 3, Action.RESTART: 3}
    if alone:  # what a black hole keeps locked would hold up the other for half a minute
        actions |= {Action.BLACK_HOLE_KILL: 1, Action.BLACK_HOLE_STOP: 2, Action.OUTLAST: 3}
    action = chance.choices(list(actions), weights=list(actions.values()))[0]
    when = chance.choice([When.BEFORE, When.AFTER])
    if action is Action.OUTLAST:
        text = chance.choice([PORTAL_SETTLE, MAIL_SETTLE])
        return Fault(spot=Spot.STATEMENT, number=chance.randint(1, 2), action=action, text=text)
    text = chance.choice(["", "", PORTAL_SETTLE, MAIL_SETTLE])
    number = chance.choice(_NUMBERS) if text else chance.randint(1, 75)
    return Fault(spot=Spot.STATEMENT, number=number, when=when, action=action, text=text)
