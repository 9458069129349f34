-- Whether something ran on a later date than today (a wrong clock, finished or not) and no full night has made good for it
-- since: a full night on an earlier date than that one's looks at everybody again before it does anything else.
SELECT EXISTS (
    SELECT
    FROM job_runs AS wrong
    WHERE wrong.as_of > %(today)s
        AND NOT EXISTS (
            SELECT
            FROM job_runs AS healing
            WHERE healing.command = 'run'
                AND healing.organisation IS NULL
                AND healing.started_at > coalesce(wrong.finished_at, wrong.started_at + interval '1 day')
                AND healing.as_of < wrong.as_of
        )
)
