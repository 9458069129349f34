"""`certjob check`."""
