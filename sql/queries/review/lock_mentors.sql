-- The still due ones among mentors that another session held a moment ago.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE id = ANY (%(ids)s::uuid[]) AND review_on <= %(today)s
ORDER BY id
FOR NO KEY UPDATE SKIP LOCKED
