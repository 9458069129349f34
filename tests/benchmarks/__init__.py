"""What a night costs, beside a reference that runs in turns with it on the same machine where the bar is a ratio.

    make bench                                              # everything, up to 1,000,000 mentors
    make bench BENCH_ARGS="--only night --mentors 100000"   # one part, smaller

Seconds depend on the machine and on what else it does; a ratio of two things done in turns does so much less. A side
runs as often as ``--rounds`` says, the order changes from round to round, and a figure is the median of the rounds'
ratios with the lowest and the highest beside it.
"""
