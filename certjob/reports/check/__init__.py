"""`certjob check`: what a night depends on, looked at."""
