-- What the portal may still show wrongly: the same view as the alerts.
SELECT a.full_name AS name, a.member_no, a.visible, a.sentence, a.wanted_at, a.error,
    'push:' || a.event_id || ':' || a.visible::text AS line
FROM portal_alerts AS a
WHERE a.organisation_id = %(organisation_id)s
