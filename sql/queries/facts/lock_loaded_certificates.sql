-- The app locks certificate, then mentor (through the trigger): so does a load, the certificates first and in one order.
-- Only rows that will change: a lock is a write, and a second load of the same file writes nothing.
SELECT c.id
FROM pg_temp.load_rows AS r
JOIN certificates AS c ON c.mentor_id = r.mentor_id AND c.kind = r.kind AND c.issued_on = r.issued_on
WHERE c.expires_on <> r.expires_on
    OR (r.revoked_on IS NOT NULL AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
ORDER BY c.id
FOR NO KEY UPDATE OF c
