"""Whole nights in which a seeded fault happens, and the recovery after it.

    make chaos                              # every place of a night, then random faults; more than 500 runs
    make chaos CHAOS_ARGS="--seed 1234"     # one run again

Each run has its own database, a portal and a mail server on loopback, and the installed command as a process. After
the fault the servers are healthy, the leases expire, and certjob runs until it is content. Then the result must be the
same as without a fault. ``random.Random(seed)`` makes all choices. A seed repeats the plan, but not the order of
concurrent calls.
"""
