-- What is open at the end of a run.
SELECT count(*) FROM coordinator_digests WHERE status = 'pending'
