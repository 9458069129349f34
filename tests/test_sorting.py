"""Rows that do not fit comfortably into memory: their order, and what they take."""

import random
import tracemalloc
from datetime import date, timedelta
from uuid import uuid4

from certjob.domain.models import Status
from certjob.reports.listing import ListedCertificate
from certjob.sorting import SortedRows


def row(number: int) -> ListedCertificate:
    return ListedCertificate(
        organisation="hlf",
        member_no=f"M{number}",
        full_name=f"Mentor {number}",
        kind="likeperson",
        status=Status.VALID,
        issued_on=date(2024, 3, 12),
        expires_on=date(2026, 3, 12) + timedelta(days=number % 730),
        days_left=number % 730,
        pauses=(),
        left=False,
        mentor_id=uuid4(),
        certificate_id=uuid4(),
    )


def test_rows_come_in_the_order_of_the_key_and_equal_ones_as_they_were_added() -> None:
    """As ``sorted`` returns them, with one run or several, and again after more rows."""
    chance = random.Random(1)
    for number in (0, 1, 250, 9_999, 10_000, 25_123):
        rows = [(chance.randint(0, 50), place) for place in range(number)]
        kept = SortedRows[tuple[int, int]](lambda pair: pair[0])
        for place, pair in enumerate(rows):
            kept.append(pair)
            if place == number // 2:
                assert next(iter(kept)) == min(rows[: place + 1], key=lambda pair: pair[0])

        assert (list(kept), len(kept)) == (sorted(rows, key=lambda pair: pair[0]), number)
        assert list(kept) == list(kept)


def test_rows_of_12_000_certificates_take_4_mb() -> None:
    """A list of them takes 6 MB. With 200,000 mentors, Kubernetes would end the command."""
    tracemalloc.start()
    kept = SortedRows[ListedCertificate](lambda each: each.expires_on)
    for number in range(12_000):
        kept.append(row(number))
    counted = sum(1 for _ in kept)
    megabytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()

    assert counted == 12_000
    assert megabytes < 4
