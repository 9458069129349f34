-- Settling locks several rows: in one order, so that nobody deadlocks.
SELECT id FROM cert_notification_log WHERE id = ANY (%(ids)s) ORDER BY mentor_id, threshold_days, cert_id FOR NO KEY UPDATE
