-- For an app with breaks, here public.breaks: opens and ends their pauses in certjob. Run both statements whenever a
-- break is entered, changed, begins or ends, as the owner of certjob's schema or with the key of service_role. The actor
-- is a name of your choice, but not certjob.
INSERT INTO certjob.mentor_pauses (mentor_id, reason, actor, paused_at)
SELECT m.id, 'break', 'app', b.begins_at
FROM public.breaks AS b
JOIN certjob.mentors AS m ON m.id = b.profile_id
WHERE b.begins_at <= now() AND b.ends_at > now()
ON CONFLICT (mentor_id, reason) WHERE lifted_at IS NULL DO NOTHING;

UPDATE certjob.mentor_pauses AS p SET lifted_at = now(), lifted_by = 'app'
WHERE p.actor = 'app' AND p.reason = 'break' AND p.lifted_at IS NULL AND NOT EXISTS (
    SELECT FROM public.breaks AS b
    WHERE b.profile_id = p.mentor_id AND b.begins_at <= now() AND b.ends_at > now()
);
