"""`certjob explain`: one mentor's whole story."""
