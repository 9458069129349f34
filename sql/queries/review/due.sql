-- name: find_due_mentors
-- Who is still due after a pass: locked by another session, or changed since. Not in organisations of which changes are
-- held, and not those who are done: broken, or due on purpose, since their reminders are held.
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND organisation_id <> ALL (%(held)s::uuid[])
    AND id <> ALL (%(done)s::uuid[])
ORDER BY review_on, id
LIMIT 10000

-- name: find_due_open_pushes
-- The due mentors with an open push: its value may not be true any more.
SELECT m.id
FROM portal_sync_events AS e
CROSS JOIN LATERAL (SELECT m.id FROM mentors AS m WHERE m.id = e.mentor_id AND m.review_on <= %(today)s OFFSET 0) AS m
WHERE e.status IN ('pending', 'blocked')

-- name: lock_due_mentors
-- One chunk of due mentors (or of those with the given ids), locked and nothing else: facts read in the locking statement
-- could be older than the lock. Other runs' mentors are skipped, so several runs share the work; FOR NO KEY UPDATE lets
-- child rows be inserted.
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
-- One mentor of a chunk that failed, unless another session has locked or reviewed it meanwhile.
SELECT id FROM mentors WHERE id = %(id)s AND review_on <= %(today)s FOR NO KEY UPDATE SKIP LOCKED

-- name: lock_mentor
-- One mentor for a resync, due or not; waits for whoever holds the row (lock_timeout bounds it).
SELECT id FROM mentors WHERE id = %(id)s FOR NO KEY UPDATE

-- name: review_everybody
-- What was decided for a later day is not to be trusted: everybody is due. Locked in one order, as by everybody else.
WITH decided AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on > '-infinity' AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE mentors AS m SET review_on = '-infinity' FROM decided WHERE m.id = decided.id
