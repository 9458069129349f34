-- Which of the events whose token is gone were withdrawn during the call: nobody else has taken them over.
SELECT id FROM portal_sync_events WHERE id = ANY (%(ids)s::bigint[]) AND status = 'withdrawn'
