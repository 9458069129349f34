"""The cost of a run, where possible as a ratio to a reference that runs in turns with it.

    make bench                                              # everything, up to 1,000,000 mentors
    make bench BENCH_ARGS="--only night --mentors 100000"   # one part, smaller

Seconds depend on the machine and its load, ratios much less. ``--rounds`` says how often each side runs; the order
alternates, and a figure is the median of the rounds, with the lowest and the highest.
"""
