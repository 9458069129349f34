"""A program that runs one night without deliveries, and prints its document as JSON."""

import json
import sys
from collections import Counter

from certjob import database
from tests.support.command_line import today
from tests.support.nights import EVERYTHING, night


def main(url: str, *, allow: bool) -> None:
    """Review everyone who is due in the database at this URL."""
    with database.connect(url) as connection:
        report = night(connection, today(), deliver=False, allow=EVERYTHING if allow else Counter())
    print(json.dumps(report.to_document()))


if __name__ == "__main__":
    main(sys.argv[1], allow="--allow-everything" in sys.argv)
