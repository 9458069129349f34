"""A few nights of the crash matrix, one for every kind of trouble; `make chaos` does more than 300."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Action, Manner, Phase, Spot, When, Word
from tests.chaos.one_run import perform
from tests.chaos.plans import plan_for
from tests.support.own_server import data_folder

SEEDS = (1000, 1003, 1010, 1012, 1013, 1018, 1029, 1033, 1040, 1042, 1106, 1108, 1125, 1163, 1232, 1257, 1316, 1421)
"""Chosen so that together they hold everything that can go wrong, each where it is reached."""


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
    assert all(hit for _, hit in outcome.troubles), f"no mail session of seed {seed} came so far: {outcome.troubles}"


def test_the_seeds_hold_everything_that_can_go_wrong() -> None:
    """Every action, place and side, every answer of the portal and of the mail server."""
    commands = [command for seed in SEEDS for command in plan_for(seed).commands]
    faults = [command.fault for command in commands if command.fault]

    assert {fault.action for fault in faults} == set(Action)
    assert {fault.spot for fault in faults} == set(Spot)
    assert {fault.when for fault in faults} == set(When)
    assert {word for command in commands for word in command.script} == set(Word)
    troubles = [trouble for command in commands for trouble in command.mail_script if trouble is not None]
    assert {trouble.phase for trouble in troubles} == set(Phase)
    assert {trouble.manner for trouble in troubles} == set(Manner)
    assert any(command.twin for command in commands)
    assert any(command.database_is_down for command in commands)
    assert any(command.portal_is_down for command in commands)
