-- What delete_old_transitions would delete.
SELECT count(*)
FROM certificate_transitions AS t
WHERE t.at < %(before)s
    AND t.as_of < %(before_on)s
    AND NOT EXISTS (
        SELECT
        FROM certificates AS c
        WHERE c.id = t.certificate_id
            AND c.mentor_id = t.mentor_id
            AND c.status = t.to_status
            AND NOT EXISTS (
                SELECT
                FROM certificate_transitions AS newer
                WHERE newer.mentor_id = t.mentor_id
                    AND newer.certificate_id = t.certificate_id
                    AND newer.to_status = t.to_status
                    AND newer.id > t.id
            )
    )
