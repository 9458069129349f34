-- name: count_certified_mentors
-- Count mentors who were certified at their last review and have not left, up to a number that is enough for the
-- guard. For a mentor who was never reviewed, a certificate in force counts.
SELECT count(*)
FROM (
    SELECT
    FROM mentors AS m
    WHERE m.organisation_id = %(organisation_id)s
        AND m.left_at IS NULL
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
    LIMIT %(enough)s
) AS certified

-- name: bound_mass_changes
-- Organisations with enough due mentors to exceed a limit of the guard, or with surprising changes in the last 20
-- hours. A normal run finds none. Each has upper bounds that need no rules: only a mentor who has a lapsed
-- certificate, has none in force, or has left can be paused or hidden; only a paused or hidden mentor can return; and
-- each certificate has at most one due reminder. Pauses are counted for each due mentor, because for a join the
-- planner reads those of all mentors. A mentor with more than 200 certificates is not reviewed.
SELECT
    o.id,
    o.slug,
    count(*) FILTER (
        WHERE (own.open = 0 AND held.has_ended AND m.left_at IS NULL)
            OR (
                o.portal IS NOT NULL
                AND m.portal_visible IS DISTINCT FROM false
                AND (held.has_ended OR NOT held.is_in_force OR m.left_at IS NOT NULL)
            )
    ) AS may_be_removed,
    count(*) FILTER (
        WHERE own.open > 0 OR (o.portal IS NOT NULL AND m.portal_visible IS FALSE AND held.is_in_force)
    ) AS may_return,
    sum(held.number)::bigint AS may_remind
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
CROSS JOIN LATERAL (
    SELECT count(*) AS open
    FROM mentor_pauses
    WHERE mentor_id = m.id AND reason = 'certification_expired' AND lifted_at IS NULL
) AS own
CROSS JOIN LATERAL (
    SELECT count(*) AS number,
        coalesce(bool_or(few.revoked_at IS NOT NULL OR few.expires_on < %(today)s), false) AS has_ended,
        coalesce(bool_or(
            few.revoked_at IS NULL
            AND %(today)s BETWEEN few.issued_on AND few.expires_on
            AND few.kind <> ALL (o.optional_kinds)
        ), false) AS is_in_force
    FROM (SELECT kind, issued_on, expires_on, revoked_at FROM certificates WHERE mentor_id = m.id LIMIT 200) AS few
) AS held
WHERE m.review_on <= coalesce(%(due_by)s::date, 'infinity')
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
GROUP BY o.id
HAVING count(*) > %(minimum)s
    OR EXISTS (
        SELECT
        FROM guard_counts AS g
        WHERE g.organisation_id = o.id AND g.at BETWEEN now() - interval '20 hours' AND now() + interval '20 hours'
    )

-- name: read_guard_counts
-- The surprising changes of an organisation in the last 20 hours, by kind. A time of a few hours in the future counts,
-- because the clock may have been set back. A later one is ignored, because it comes from a wrong clock.
SELECT what, sum(number)::integer
FROM guard_counts
WHERE organisation_id = %(organisation_id)s AND at BETWEEN now() - interval '20 hours' AND now() + interval '20 hours'
GROUP BY what

-- name: lock_counted_organisations
-- Parallel runs count one after the other. Otherwise each could apply as many changes as the limit allows.
SELECT FROM organisations WHERE id = ANY (%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE

-- name: insert_guard_count
-- The surprising changes of one chunk, in its transaction.
INSERT INTO guard_counts (organisation_id, what, number) VALUES (%(organisation_id)s, %(what)s, %(number)s)

-- name: forget_guard_counts
-- read_guard_counts ignores these rows.
DELETE FROM guard_counts WHERE at NOT BETWEEN now() - interval '20 hours' AND now() + interval '20 hours'

-- name: is_after_gap
-- Whether no finished run has reviewed the organisation for a week, or a change is still held since such a gap. The
-- run that held it has reviewed the organisation, but has not applied the change.
SELECT
    NOT EXISTS (
        SELECT
        FROM job_runs
        WHERE command = 'run'
            AND outcome IN ('ok', 'attention')
            AND (organisation IS NULL OR organisation = %(slug)s)
            AND as_of BETWEEN %(today)s::date - 7 AND %(today)s
    )
    OR EXISTS (SELECT FROM held_reviews WHERE organisation_id = %(organisation_id)s AND after_gap)

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
