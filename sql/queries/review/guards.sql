-- name: count_active_mentors
-- The guards' measure of an organisation: mentors who have not left and have no open pause, as far as they matter.
SELECT count(*)
FROM (
    SELECT
    FROM mentors AS m
    WHERE m.organisation_id = %(organisation_id)s
        AND m.left_at IS NULL
        AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)
    LIMIT %(enough)s
) AS active

-- name: bound_mass_changes
-- Organisations with enough due mentors to exceed a guard's limit (a normal night finds none), each with upper bounds that
-- need no rules: only a mentor with a revoked or past certificate and no pause of certjob's can be newly paused, only one
-- with such a pause can come back, and each certificate gives at most one reminder. Each due mentor's pause is counted:
-- joined, the planner reads those of everybody. Who has more than 200 certificates is not reviewed.
SELECT
    m.organisation_id,
    count(*) FILTER (WHERE own.open = 0 AND held.has_ended) AS may_pause,
    count(*) FILTER (WHERE own.open > 0) AS may_resume,
    sum(held.number)::bigint AS may_remind
FROM mentors AS m
CROSS JOIN LATERAL (
    SELECT count(*) AS open
    FROM mentor_pauses
    WHERE mentor_id = m.id AND reason = 'certification_expired' AND lifted_at IS NULL
) AS own
CROSS JOIN LATERAL (
    SELECT count(*) AS number, bool_or(few.revoked_at IS NOT NULL OR few.expires_on < %(today)s) AS has_ended
    FROM (SELECT revoked_at, expires_on FROM certificates WHERE mentor_id = m.id LIMIT 200) AS few
) AS held
WHERE m.review_on <= coalesce(%(due_by)s::date, 'infinity')
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
GROUP BY m.organisation_id
HAVING count(*) > %(minimum)s

-- name: read_last_run_date
-- The guard against a clock that went back: the day of the most recently finished night over all organisations.
SELECT as_of
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1

-- name: find_later_full_run
-- The date of a full run on a later date than today, whether it ended or not, if no full run on an earlier date than that
-- began after it. An unfinished run may have written as much as one that ended.
SELECT max(later.as_of)
FROM job_runs AS later
WHERE later.command = 'run'
    AND later.organisation IS NULL
    AND later.as_of > %(today)s
    AND NOT EXISTS (
        SELECT
        FROM job_runs AS corrected
        WHERE corrected.command = 'run'
            AND corrected.organisation IS NULL
            AND corrected.as_of < later.as_of
            AND corrected.started_at > coalesce(later.finished_at, later.last_seen_at)
    )

-- name: find_later_run
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
