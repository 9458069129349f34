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
