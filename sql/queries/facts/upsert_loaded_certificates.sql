-- A new issue date is a new row, a changed expiry date or revocation changes the row in place, an empty revoked_on never
-- revives. The day of a revocation is kept as its midnight in UTC; one of the same day, whenever on it, stays as it is.
-- xmax is 0 in a row that this statement inserted.
WITH written AS (
    INSERT INTO certificates AS c (mentor_id, kind, issued_on, expires_on, revoked_at)
    SELECT r.mentor_id, r.kind, r.issued_on, r.expires_on, r.revoked_on::timestamp AT TIME ZONE 'UTC'
    FROM pg_temp.load_rows AS r
    LEFT JOIN certificates AS known
        ON known.mentor_id = r.mentor_id AND known.kind = r.kind AND known.issued_on = r.issued_on
    WHERE known.id IS NULL
        OR known.expires_on <> r.expires_on
        OR (r.revoked_on IS NOT NULL AND (known.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
    ORDER BY r.mentor_id, r.kind, r.issued_on
    ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
    SET expires_on = excluded.expires_on,
        revoked_at = CASE
            WHEN (excluded.revoked_at AT TIME ZONE 'UTC')::date = (c.revoked_at AT TIME ZONE 'UTC')::date THEN c.revoked_at
            ELSE coalesce(excluded.revoked_at, c.revoked_at)
        END
    WHERE c.expires_on <> excluded.expires_on
        OR (
            excluded.revoked_at IS NOT NULL
            AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM (excluded.revoked_at AT TIME ZONE 'UTC')::date
        )
    RETURNING c.xmax = 0 AS added
)
SELECT
    (count(*) FILTER (WHERE added))::integer AS added,
    (count(*) FILTER (WHERE NOT added))::integer AS changed
FROM written
