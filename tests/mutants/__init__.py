"""How much the tests catch: certjob broken in one small way after the other, each time tested (``make mutants``)."""
