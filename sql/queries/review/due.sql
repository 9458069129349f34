-- name: find_due_mentors
-- Mentors who are still due after a pass: locked by another session, or changed since. "done" has those who stay due
-- after a look: broken ones, and those with held changes. They may be many, and NOT EXISTS makes a hash of them.
SELECT m.id
FROM mentors AS m
WHERE m.review_on <= %(today)s
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
    AND NOT EXISTS (SELECT FROM unnest(%(done)b::uuid[]) AS done (id) WHERE done.id = m.id)
ORDER BY m.review_on, m.id
LIMIT 10000

-- name: find_due_open_pushes
-- Due mentors with an open push, which may be outdated.
SELECT m.id
FROM portal_sync_events AS e
CROSS JOIN LATERAL (SELECT m.id FROM mentors AS m WHERE m.id = e.mentor_id AND m.review_on <= %(today)s OFFSET 0) AS m
WHERE e.status IN ('pending', 'blocked')

-- name: lock_due_mentors
-- Lock one chunk of due mentors, or of those with the given ids. Facts read by the same statement could be older than
-- the lock. Parallel runs share the work, because each skips the other's mentors. FOR UPDATE would block inserts of
-- child rows.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE review_on <= %(today)s
    AND (review_on, id) > (%(after_review)s::date, %(after_id)s::uuid)
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND (%(ids)s::uuid[] IS NULL OR id = ANY (%(ids)s::uuid[]))
ORDER BY review_on, id
LIMIT %(limit)s
FOR NO KEY UPDATE SKIP LOCKED

-- name: lock_due_mentor
-- Lock one mentor of a failed chunk, unless another session has locked or reviewed the mentor in the meantime.
SELECT id FROM mentors WHERE id = %(id)s AND review_on <= %(today)s FOR NO KEY UPDATE SKIP LOCKED

-- name: lock_mentor
-- Lock one mentor for a resync, due or not. It waits for another session up to lock_timeout.
SELECT id FROM mentors WHERE id = %(id)s FOR NO KEY UPDATE

-- name: review_everybody
-- Make all mentors due, because their stored days of the next review may be wrong. The order prevents deadlocks.
WITH decided AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on > '-infinity' AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE mentors AS m SET review_on = '-infinity' FROM decided WHERE m.id = decided.id
