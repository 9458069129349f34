-- What was decided for a later day is not to be trusted: everybody is due. Locked in one order, as by everybody else.
WITH decided AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on > '-infinity' AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE mentors AS m SET review_on = '-infinity' FROM decided WHERE m.id = decided.id
