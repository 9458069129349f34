-- Coordinators' daily mails that were refused; the same as read_failed_digests lists.
SELECT count(*) FROM coordinator_digests AS d WHERE d.status = 'failed'
