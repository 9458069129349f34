-- The guards' measure of an organisation: mentors who have not left and have no open pause. No further than the question
-- goes: whether a change of forty is too much is known once four hundred are counted, in an organisation of any size. So
-- they are taken in the order of an index, and each one's pauses looked up (OFFSET 0): joined, everybody's would be read.
SELECT count(*)
FROM (
    SELECT
    FROM mentors AS m
    WHERE m.organisation_id = %(organisation_id)s
        AND m.left_at IS NULL
        AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL OFFSET 0)
    ORDER BY m.member_no
    LIMIT %(limit)s
) AS active
