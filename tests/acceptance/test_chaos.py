"""A few nights of the crash matrix, one for every kind of trouble; `make chaos` does more than 300."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Action, MailTrouble, Manner, Phase, Spot, When, Word
from tests.chaos.one_run import perform
from tests.chaos.plans import Command, plan_for, struck_night
from tests.support.own_server import data_folder

SEEDS = (
    *(1002, 1007, 1013, 1025, 1026, 1034, 1037, 1039, 1040, 1043, 1044, 1052),
    *(1058, 1061, 1062, 1073, 1083, 1126, 1146),
)
"""Chosen so that together they hold everything that can go wrong but the mail server, each where it is reached."""
MAIL = (
    (MailTrouble(Phase.CONNECT, Manner.DROP), MailTrouble(Phase.MAIL, Manner.GARBAGE)),
    (MailTrouble(Phase.EHLO, Manner.HANG), MailTrouble(Phase.RCPT, Manner.LATER)),
    (MailTrouble(Phase.STARTTLS, Manner.SURPLUS), MailTrouble(Phase.DATA, Manner.SURPLUS)),
    (MailTrouble(Phase.HANDSHAKE, Manner.GARBAGE), MailTrouble(Phase.BODY, Manner.DROP)),
    (MailTrouble(Phase.LOGIN, Manner.CLOSING), MailTrouble(Phase.DOT, Manner.GARBAGE)),
    (MailTrouble(Phase.REPLY, Manner.HANG), MailTrouble(Phase.QUIT, Manner.DROP)),
)
"""Each phase of a session, and all manners; `make chaos` has every pair of them."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL of this worker's own: it is stopped with ``immediate``."""
    with data_folder("chaos") as folder, Cluster(folder) as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_done_twice(seed: int, cluster: Cluster, tmp_path: Path) -> None:
    """Whatever broke: once all is well, the portal, the reminders and the failures are as the facts ask for."""
    outcome = perform(plan_for(seed), cluster=cluster, folder=tmp_path)

    assert not outcome.complaints, str(outcome)
    assert all(struck for _, struck in outcome.struck), f"the faults of seed {seed} were not reached: {outcome.struck}"


@pytest.mark.parametrize("script", MAIL, ids=lambda script: ", ".join(map(str, script)))
def test_a_mail_server_may_fail_at_any_phase(script: tuple[MailTrouble, ...], cluster: Cluster, tmp_path: Path) -> None:
    """Once it is well, everybody has got what was due; whatever came twice says so."""
    outcome = perform(struck_night(Command(mail_script=script), seed=0), cluster=cluster, folder=tmp_path)

    assert not outcome.complaints, str(outcome)
    assert outcome.troubles == [(str(trouble), True) for trouble in script]


def test_the_seeds_hold_everything_that_can_go_wrong() -> None:
    """Every action, place and side, every answer of the portal, every phase of a mail session."""
    commands = [command for seed in SEEDS for command in plan_for(seed).commands]
    faults = [command.fault for command in commands if command.fault]

    assert {fault.action for fault in faults} == set(Action)
    assert {fault.spot for fault in faults} == set(Spot)
    assert {fault.when for fault in faults} == set(When)
    assert {word for command in commands for word in command.script} == set(Word)
    troubles = [trouble for script in MAIL for trouble in script]
    assert {trouble.phase for trouble in troubles} == set(Phase)
    assert {trouble.manner for trouble in troubles} == set(Manner)
    assert any(command.twin for command in commands)
    assert any(command.database_is_down for command in commands)
    assert any(command.portal_is_down for command in commands)
