-- Reminders that nothing can ever ask about again, one page by key. A row is the memory that a mail about this threshold and
-- a date went out, and it must outlive every day on which that mail could be due: for a threshold t >= 0 the last one is
-- the date itself, for t < 0 it is -t + 14 days later. So a row goes only when every date that it knows, those of earlier
-- cycles too, lies more than -t days before the limit, and the limit is at least 90 days ago. Whatever date the
-- certificate has or is given later is then either one of those, and too late to be mailed about, or one that the row
-- knows nothing of, which is mailed about with the row or without it. Neither pending nor failed rows go.
WITH page AS MATERIALIZED (
    SELECT id FROM cert_notification_log WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM cert_notification_log AS l
    USING page
    WHERE l.id = page.id
        AND l.status IN ('sent', 'cancelled', 'superseded')
        AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < %(before)s
        AND l.expires_on < %(before_on)s::date - greatest(-l.threshold_days, 0)
        AND NOT EXISTS (
            SELECT
            FROM jsonb_array_elements(l.history) AS cycle
            WHERE (cycle ->> 'expires_on')::date >= %(before_on)s::date - greatest(-l.threshold_days, 0)
        )
    RETURNING l.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
