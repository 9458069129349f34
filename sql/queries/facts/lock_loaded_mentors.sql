-- The mentors that will change, or whose certificates will (their triggers write review_on), in one order.
SELECT m.id
FROM mentors AS m
WHERE m.id IN (
    SELECT known.id
    FROM pg_temp.load_rows AS r
    JOIN mentors AS known ON known.id = r.mentor_id
    LEFT JOIN certificates AS c ON c.mentor_id = r.mentor_id AND c.kind = r.kind AND c.issued_on = r.issued_on
    WHERE c.id IS NULL
        OR c.expires_on <> r.expires_on
        OR (r.revoked_on IS NOT NULL AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
        OR (r.full_name IS NOT NULL AND known.full_name IS DISTINCT FROM r.full_name)
        OR (r.email IS NOT NULL AND known.email IS DISTINCT FROM r.email)
        OR (r.locale IS NOT NULL AND known.locale <> r.locale)
        OR (r.dynamics_contact_id IS NOT NULL AND known.dynamics_contact_id IS DISTINCT FROM r.dynamics_contact_id)
)
ORDER BY m.id
FOR NO KEY UPDATE
