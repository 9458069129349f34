-- The alerts of the view, in its order, with what a person has to know in order to act: why each push waits, and until
-- when. `certjob alerts --json` and the app's dashboard keep to the view itself.
SELECT a.mentor_id, a.organisation_id, a.member_no, a.full_name, a.visible, a.sentence, a.error, a.attempts AS calls,
    a.wanted_at, a.last_failed_at, e.status, e.attempts AS rounds, e.next_attempt_at, f.kind AS failure_kind,
    e.claim_token IS NOT NULL AND e.next_attempt_at > now() AS is_claimed,
    m.dynamics_contact_id IS NOT NULL AS has_contact_id,
    -- A trigger does this when the contact id is changed; the next review undoes it.
    m.portal_visible IS NULL AS has_new_contact_id
FROM portal_alerts AS a
JOIN portal_sync_events AS e ON e.id = a.event_id
JOIN mentors AS m ON m.id = a.mentor_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
ORDER BY a.visible, a.wanted_at, a.event_id
