-- Claimed a moment ago and waiting for their turn: no newer wish has come, nobody has taken over, and the organisation
-- still has its portal.
SELECT e.id
FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(versions)s::int[]) AS n (id, token, version)
JOIN portal_sync_events AS e ON e.id = n.id AND e.claim_token = n.token AND e.version = n.version
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
WHERE e.status = 'pending'
