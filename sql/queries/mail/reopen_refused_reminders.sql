-- Five refusals in a row are the server's fault rather than five recipients': they go back to pending, behind the others.
UPDATE cert_notification_log
SET status = 'pending', next_attempt_at = now() + make_interval(secs => %(delay_seconds)s)
WHERE id = ANY (%(ids)s) AND status = 'failed'
