-- What is read of old rows of the ledger, and so stays: of each kind of run, and of each way in which it ended, the last
-- one (what was the last night, the last good one, why did it stop), and the one that began last, which is the full
-- night that made good for a wrong clock before it. Read once: what comes meanwhile is too young to go.
(
    SELECT DISTINCT ON (k.command, k.organisation, k.outcome) k.id
    FROM job_runs AS k
    WHERE k.finished_at IS NOT NULL
    ORDER BY k.command, k.organisation, k.outcome, k.finished_at DESC
)
UNION
(
    SELECT DISTINCT ON (k.command, k.organisation) k.id
    FROM job_runs AS k
    ORDER BY k.command, k.organisation, k.started_at DESC
)
