-- The same view as the app's dashboard: hides first, oldest first.
SELECT event_id, mentor_id, organisation_id, member_no, full_name, visible, sentence, error, attempts, wanted_at,
    last_failed_at
FROM portal_alerts
