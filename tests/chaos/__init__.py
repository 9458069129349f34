"""The crash matrix: whole nights in which something is killed, cut or stopped at a seeded place, then put right again.

    make chaos                              # every statement of a night, then random faults; more than 500 runs
    make chaos CHAOS_ARGS="--seed 1234"     # one of them again

A run has a database of its own, a portal and a mail server on loopback, and the installed command as a process. After
the fault the portal is healthy, the leases run out, certjob runs until it is content, and everything must be as if
nothing had happened. All choices come from ``random.Random(seed)``; with several threads or two processes at once the
order of the calls is the machine's own, and a seed repeats the plan but not every interleaving.
"""
