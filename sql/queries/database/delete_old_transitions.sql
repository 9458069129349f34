-- The audit, one page by key. While a certificate exists, the last time it came into its present status stays: `explain`
-- tells since when it is what it is.
WITH page AS MATERIALIZED (
    SELECT id FROM certificate_transitions WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM certificate_transitions AS t
    USING page
    WHERE t.id = page.id
        AND t.at < %(before)s
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
    RETURNING t.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
