-- name: read_attention
-- The number of alerts by kind, the number of acknowledged ones, and the keys of the others. "single" has the alerts that a
-- run prints one by one: holds, and an overdue full run.
SELECT a.kind, count(*) FILTER (WHERE NOT a.is_acknowledged) AS number,
    count(*) FILTER (WHERE a.is_acknowledged) AS acknowledged,
    coalesce(jsonb_agg(a.keys) FILTER (WHERE NOT a.is_acknowledged), '[]') AS keys,
    coalesce(
        jsonb_agg(
            jsonb_build_object('organisation', a.organisation, 'what', a.cause, 'reason', a.error, 'allow', a.number)
            ORDER BY a.since, a.organisation, a.cause
        ) FILTER (WHERE a.kind IN ('held', 'no_full_run')),
        '[]'
    ) AS single
FROM current_alerts(%(today)s) AS a
GROUP BY a.kind

-- name: store_held_review
-- A repeated hold keeps its "since". xmax is 0 in an inserted row.
INSERT INTO held_reviews AS h (organisation_id, what, as_of, reason, mentors, allow, after_gap, run_id)
VALUES (%(organisation_id)s, %(what)s, %(today)s, %(reason)s, %(mentors)s, %(allow)s, %(after_gap)s, %(run_id)s)
ON CONFLICT (organisation_id, what) DO UPDATE
SET as_of = excluded.as_of, reason = excluded.reason, mentors = excluded.mentors, allow = excluded.allow,
    after_gap = excluded.after_gap, run_id = excluded.run_id
RETURNING xmax = 0 AS is_new

-- name: forget_held_reviews
-- Delete the holds that this run has not repeated. A hold of `reconcile` stays until the next reading of the portal,
-- unless the organisation has lost its portal, because then there may be no other reading.
DELETE FROM held_reviews AS h
WHERE (
        h.what <> 'portal'
        OR NOT EXISTS (SELECT FROM organisations AS o WHERE o.id = h.organisation_id AND o.portal IS NOT NULL)
    )
    AND (%(organisation_id)s::uuid IS NULL OR h.organisation_id = %(organisation_id)s)
    AND NOT EXISTS (
        SELECT FROM unnest(%(held)b::uuid[], %(whats)b::text[]) AS n (organisation_id, what)
        WHERE n.organisation_id = h.organisation_id AND n.what = h.what
    )

-- name: store_held_mentors
-- A repeated hold of a mentor keeps its "since", but another reason is news: an acknowledged hold becomes an alert again
-- if a held mentor is revoked. The order prevents a deadlock of two runs. The join leaves out mentors who are deleted or
-- that another session has locked, because the foreign key would wait for them.
INSERT INTO held_mentors AS h (mentor_id, kind, reason)
SELECT n.mentor_id, n.kind, n.reason
FROM unnest(%(ids)b::uuid[], %(kinds)b::text[], %(reasons)b::text[]) AS n (mentor_id, kind, reason)
JOIN mentors AS m ON m.id = n.mentor_id
ORDER BY n.mentor_id, n.kind
FOR KEY SHARE OF m SKIP LOCKED
ON CONFLICT (mentor_id, kind) DO UPDATE
SET reason = excluded.reason, since = excluded.since
WHERE h.reason <> excluded.reason

-- name: forget_held_mentors
-- Delete the held mentors that this run has not held.
DELETE FROM held_mentors AS h
WHERE NOT EXISTS (
        SELECT FROM unnest(%(ids)b::uuid[], %(kinds)b::text[]) AS n (mentor_id, kind)
        WHERE n.mentor_id = h.mentor_id AND n.kind = h.kind
    )
    AND (
        %(organisation_id)s::uuid IS NULL
        OR (SELECT m.organisation_id FROM mentors AS m WHERE m.id = h.mentor_id) = %(organisation_id)s
    )

-- name: forget_held_mentor
-- After the review of a single mentor.
DELETE FROM held_mentors WHERE mentor_id = %(id)s

-- name: forget_portal_holds
-- After a complete reading of the portal, delete the holds that it has not repeated.
DELETE FROM held_reviews WHERE what = 'portal' AND organisation_id <> ALL (%(held)b::uuid[])

-- name: store_review_problems
-- The order prevents a deadlock of two runs.
INSERT INTO review_problems AS p (mentor_id, reason, as_of, run_id)
SELECT mentor_id, reason, %(today)s, %(run_id)s
FROM unnest(%(ids)b::uuid[], %(reasons)b::text[]) AS n (mentor_id, reason)
ORDER BY mentor_id
ON CONFLICT (mentor_id) DO UPDATE SET reason = excluded.reason, as_of = excluded.as_of, run_id = excluded.run_id

-- name: forget_review_problems
-- Delete the problems of deleted mentors, and of those that this run has reviewed. OFFSET 0 makes the planner look up
-- each mentor by id.
DELETE FROM review_problems
WHERE mentor_id IN (
    SELECT p.mentor_id
    FROM review_problems AS p
    LEFT JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id OFFSET 0) AS m ON true
    WHERE p.mentor_id <> ALL (%(found)b::uuid[])
        AND (
            m.organisation_id IS NULL
            OR %(organisation_id)s::uuid IS NULL
            OR m.organisation_id = %(organisation_id)s
        )
    ORDER BY p.mentor_id
    FOR NO KEY UPDATE OF p SKIP LOCKED
)

-- name: forget_review_problem
-- After the review of a single mentor.
DELETE FROM review_problems WHERE mentor_id = %(id)s
