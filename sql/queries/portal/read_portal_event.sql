-- How far a resync's event has come while another run pushes it.
SELECT status, version FROM portal_sync_events WHERE id = %(id)s
