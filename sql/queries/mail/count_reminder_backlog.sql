-- What is open at the end of a run.
SELECT count(*) FROM cert_notification_log WHERE status = 'pending'
