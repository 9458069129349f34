-- name: count_due_mentors
-- Organisations with enough due mentors to exceed a guard's limit; a normal night finds none.
SELECT organisation_id, count(*) AS due
FROM mentors
WHERE review_on <= coalesce(%(due_by)s::date, 'infinity') AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
GROUP BY organisation_id
HAVING count(*) > %(minimum)s

-- name: find_due_mentors
-- Who is still due when the passes are over: somebody held them, or changed them just now. Not the organisations that
-- are held, nor those whose reminders are held, whose mentors stay due on purpose.
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND organisation_id <> ALL (%(held)s::uuid[])
    AND id <> ALL (%(broken)s::uuid[])
ORDER BY review_on, id
LIMIT 10000

-- name: lock_due_mentors
-- One chunk of due mentors, locked and nothing else: facts read in the locking statement could be older than the lock.
-- Other runs' mentors are skipped, so several runs share the work; FOR NO KEY UPDATE lets child rows be inserted.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE review_on <= %(today)s
    AND (review_on, id) > (%(after_review)s::date, %(after_id)s::uuid)
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND organisation_id <> ALL (%(held)s::uuid[])
    AND id <> ALL (%(broken)s::uuid[])
ORDER BY review_on, id
LIMIT %(limit)s
FOR NO KEY UPDATE SKIP LOCKED

-- name: lock_mentor
-- One mentor for a resync, due or not; waits for whoever holds the row (lock_timeout bounds it).
SELECT id FROM mentors WHERE id = %(id)s FOR NO KEY UPDATE

-- name: lock_mentors
-- The still due ones among mentors that another session held a moment ago.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE id = ANY (%(ids)s::uuid[]) AND review_on <= %(today)s
ORDER BY id
FOR NO KEY UPDATE SKIP LOCKED

-- name: find_locked_mentors
-- Where due mentors stay due on purpose (their reminders are held), a mentor that somebody else holds is told by its
-- lock: it is one that a SKIP LOCKED read does not return.
WITH free AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on <= %(today)s AND organisation_id = ANY (%(organisations)s::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND organisation_id = ANY (%(organisations)s::uuid[])
    AND id NOT IN (SELECT id FROM free)
ORDER BY id
LIMIT 10000

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
