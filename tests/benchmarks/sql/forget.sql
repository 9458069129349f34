-- Remove certjob's rows about %(percent)s per cent of the mentors, as if no night had run.
CREATE TEMPORARY TABLE forgotten AS
SELECT id FROM mentors WHERE substr(member_no, 2)::integer %% 100 < %(percent)s;

ANALYZE forgotten;

ALTER TABLE mentor_pauses DISABLE TRIGGER USER;

DELETE FROM mentor_pauses WHERE actor = 'certjob' AND mentor_id IN (SELECT id FROM forgotten);
DELETE FROM certificate_transitions WHERE mentor_id IN (SELECT id FROM forgotten);
DELETE FROM cert_notification_log WHERE mentor_id IN (SELECT id FROM forgotten);
DELETE FROM portal_sync_events WHERE mentor_id IN (SELECT id FROM forgotten);
UPDATE certificates SET status = 'recorded' WHERE mentor_id IN (SELECT id FROM forgotten);
UPDATE mentors
SET review_on = '-infinity', portal_visible = NULL, certified_until = NULL, decided_visible = NULL,
    without_certificate = false,    seen_certificates = '[]', reviewed_contact_id = NULL
WHERE id IN (SELECT id FROM forgotten);

ALTER TABLE mentor_pauses ENABLE TRIGGER USER;
DROP TABLE forgotten;
