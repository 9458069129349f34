-- name: prune_old_rows
-- One batch. The age is calendar time: three years are three years, whatever lies between.
SELECT certjob.prune(now() - %(age)s::interval, %(row_limit)s)
