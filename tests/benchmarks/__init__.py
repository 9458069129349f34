"""What a night costs: every figure is a ratio to a reference that runs beside it, in turns, on the same machine.

    make bench                                              # everything, up to 1,000,000 mentors
    make bench BENCH_ARGS="--only night --mentors 100000"   # one part, smaller

Seconds depend on the machine and on what else it does; a ratio of two things done in turns does so much less. A side
runs as often as ``--rounds`` says, the order changes from round to round, and a figure is the median of the rounds'
ratios with the lowest and the highest beside it.
"""
