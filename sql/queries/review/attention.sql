-- name: read_attention
-- The number of alerts by kind, the number of acknowledged ones, the keys of the others, and the causes of pushes.
-- "single" has the alerts that a run prints one by one: holds, and an overdue full run.
SELECT a.kind, count(*) FILTER (WHERE NOT a.is_acknowledged) AS number,
    count(*) FILTER (WHERE a.is_acknowledged) AS acknowledged,
    coalesce(jsonb_agg(a.keys) FILTER (WHERE NOT a.is_acknowledged), '[]') AS keys,
    coalesce(
        array_agg(DISTINCT a.cause) FILTER (WHERE NOT a.is_acknowledged AND a.kind IN ('may_be_visible', 'may_be_hidden')),
        '{}'
    ) AS causes,
    coalesce(
        jsonb_agg(
            jsonb_build_object('organisation', a.organisation, 'what', a.cause, 'reason', a.error, 'allow', a.number)
            ORDER BY a.since, a.organisation, a.cause
        ) FILTER (WHERE a.kind IN ('held', 'no_full_run')),
        '[]'
    ) AS single
FROM current_alerts(%(today)s) AS a
GROUP BY a.kind
