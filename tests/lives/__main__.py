"""Print how often the guards hold something in three ordinary years, and which wrong inputs they hold at once.

`python -m tests.lives 30 60 200 1000 5000`; the last one takes minutes. Each size has fixed seeds.
"""

import sys
from operator import attrgetter

from tests.lives.programme import START, Programme, live
from tests.lives.wrong_inputs import try_wrong_inputs

YEARS, SEEDS = 3, 8


def main() -> None:
    """Print a line for each size of the programme, and one for each wrong input that is not held."""
    for size in map(int, sys.argv[1:] or ["30", "60", "200"]):
        alarms = [
            nights
            for seed in range(SEEDS)
            for nights in live(Programme(size, seed), until=START.replace(year=START.year + YEARS))
            if nights[0].day != START
        ]
        hidden, exposed = (
            sum(number(night) for nights in alarms for night in nights) / YEARS / SEEDS
            for number in (attrgetter("hidden"), attrgetter("exposed"))
        )
        results = try_wrong_inputs(size)
        print(
            f"{size:,} mentors: {len(alarms) / YEARS / SEEDS:.2f} false alarms a year ({hidden:.1f} mentor-days hidden,"
            f" {exposed:.1f} visible), {sum(results.values())} of {len(results)} wrong inputs are held",
            flush=True,
        )
        print("\n".join(f"    not held: {name}" for name, is_held in results.items() if not is_held))


if __name__ == "__main__":
    main()
