-- name: count_due_mentors
-- Due mentors of organisations that can exceed a limit: all, and those with a changed fact. A normal run finds no such
-- organisation.
SELECT o.id, o.slug, count(*) AS due,
    count(*) FILTER (WHERE m.review_on = '-infinity' OR %(due_by)s::date IS NULL) AS changed
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.review_on <= coalesce(%(due_by)s::date, 'infinity')
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
GROUP BY o.id
HAVING count(*) > %(minimum)s
    OR EXISTS (SELECT FROM guard_counts AS g WHERE g.organisation_id = o.id)

-- name: count_certified_mentors
-- Mentors of each organisation who were certified at their last review and have not left. For a mentor who was never
-- reviewed, a certificate in force counts.
SELECT m.organisation_id, count(*)
FROM mentors AS m
WHERE m.left_at IS NULL
    AND (
        m.certified_until >= %(today)s
        OR (
            m.certified_until IS NULL
            AND EXISTS (
                SELECT
                FROM certificates AS c
                WHERE c.mentor_id = m.id AND c.revoked_at IS NULL AND %(today)s BETWEEN c.issued_on AND c.expires_on
            )
        )
    )
GROUP BY m.organisation_id

-- name: read_guard_counts
-- The mentors with surprising changes of the last 20 hours. A time of a few hours in the future counts, because the clock
-- may have been set back. A later one is ignored, because it comes from a wrong clock.
SELECT organisation_id, what, sum(number)::integer
FROM guard_counts
WHERE organisation_id = ANY (%(organisation_ids)b::uuid[])
    AND at BETWEEN now() - interval '20 hours' AND now() + interval '20 hours'
GROUP BY organisation_id, what

-- name: lock_counted_organisations
-- Parallel runs count one after the other. Otherwise each could apply as many changes as the limit allows. The order
-- prevents deadlocks.
SELECT FROM organisations WHERE id = ANY (%(ids)b::uuid[]) ORDER BY id FOR NO KEY UPDATE

-- name: insert_guard_counts
-- The surprising changes of one chunk, in its transaction.
INSERT INTO guard_counts (organisation_id, what, number)
SELECT n.organisation_id, n.what, n.number
FROM unnest(%(organisation_ids)b::uuid[], %(whats)b::text[], %(numbers)b::int[]) AS n (organisation_id, what, number)

-- name: forget_guard_counts
-- read_guard_counts ignores these rows.
DELETE FROM guard_counts WHERE at NOT BETWEEN now() - interval '20 hours' AND now() + interval '20 hours'

-- name: find_organisations_after_gap
-- Organisations that no finished run has reviewed for two days, or that none has ever reviewed.
SELECT o.id
FROM organisations AS o
WHERE NOT EXISTS (
        SELECT
        FROM job_runs AS r
        WHERE r.command = 'run'
            AND r.outcome IN ('ok', 'attention')
            AND (r.organisation IS NULL OR r.organisation = o.slug)
            AND r.as_of BETWEEN %(today)s::date - 2 AND %(today)s
    )
    OR (  -- LIMIT, because a join would read all mentors
        SELECT m.id FROM mentors AS m WHERE m.organisation_id = o.id AND m.certified_until IS NOT NULL LIMIT 1
    ) IS NULL

-- name: find_mentors_held_after_gap
SELECT m.id, m.organisation_id
FROM still_due AS s
JOIN mentors AS m ON m.id = s.mentor_id
WHERE s.after_gap

-- name: read_last_run_date
-- The date of the last finished full run.
SELECT as_of
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1

-- name: find_later_full_run
-- The latest date of a full run after today, unless a full run with an earlier date has started after it. An
-- unfinished run counts, because it may have written as much as a finished one.
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
-- Whether a run, finished or not, had a later date than today (a wrong clock), and no full run with an earlier date
-- has started after it. Such a full run reviews every mentor first.
SELECT EXISTS (
    SELECT
    FROM job_runs AS wrong
    WHERE wrong.as_of > %(today)s
        AND NOT EXISTS (
            SELECT
            FROM job_runs AS corrected
            WHERE corrected.command = 'run'
                AND corrected.organisation IS NULL
                AND corrected.started_at > coalesce(wrong.finished_at, wrong.started_at + interval '1 day')
                AND corrected.as_of < wrong.as_of
        )
)
