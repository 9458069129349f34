-- The guards' measure of an organisation: mentors who have not left and have no open pause.
SELECT count(*)
FROM mentors AS m
WHERE m.organisation_id = %(organisation_id)s
    AND m.left_at IS NULL
    AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)
