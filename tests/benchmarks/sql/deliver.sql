-- Deliver everything that is queued, as the night of the last run. No one but the due part is due on %(today)s.
UPDATE cert_notification_log AS l SET status = 'sent', sent_at = now(), attempted_on = r.as_of FROM job_runs AS r WHERE r.id = l.run_id;

UPDATE portal_sync_events AS e
SET status = 'delivered', delivered_at = now(), claim_contact_id = m.dynamics_contact_id,
    sure_until = CASE WHEN e.visible THEN date 'infinity' ELSE '0001-01-01' END,
    shown_until = CASE WHEN e.visible THEN date 'infinity' ELSE '0001-01-01' END
FROM mentors AS m
WHERE m.id = e.mentor_id;

UPDATE mentors
SET review_on = %(today)s::date + 1
WHERE review_on = %(today)s AND substr(member_no, 2)::integer / 4 %% 100 >= %(due)s;
