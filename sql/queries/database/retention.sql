-- name: prune_old_rows
-- Delete one batch. The age is calendar time, with leap years.
SELECT certjob.prune(now() - %(age)s::interval, %(row_limit)s)
