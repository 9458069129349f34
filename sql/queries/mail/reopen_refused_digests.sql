-- Refusals in a row are the server's fault rather than the coordinators': they go back to pending.
UPDATE coordinator_digests
SET status = 'pending', next_attempt_at = now() + make_interval(secs => %(delay_seconds)s)
WHERE id = ANY (%(ids)s) AND status = 'failed'
