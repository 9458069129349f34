-- One open digest for each coordinator, where there was one a day. It waits, fails, is cancelled when there is nothing to
-- report, and comes back: always the same row, until it is sent. So nothing has to be handed on from one day's to the next.

ALTER TABLE coordinator_digests RENAME COLUMN told TO reported;
ALTER TABLE coordinator_digests RENAME COLUMN told_on TO reported_on;
COMMENT ON COLUMN coordinator_digests.reported IS 'everything that the coordinator knows once it was sent, by kind and id';

-- Of several that are open the one that is being sent stays, or else the newest, and keeps that one of them may have arrived.
WITH ranked AS (
    SELECT id,
        row_number() OVER (
            PARTITION BY coordinator_id
            ORDER BY status = 'pending' AND claim_token IS NOT NULL DESC, status = 'pending' DESC, status = 'failed' DESC,
                digest_on DESC, id DESC
        ) AS number,
        bool_or(status <> 'cancelled' AND (maybe_sent OR claim_token IS NOT NULL)) OVER (PARTITION BY coordinator_id)
            AS maybe_sent
    FROM coordinator_digests
    WHERE status IN ('pending', 'failed', 'cancelled')
)
UPDATE coordinator_digests AS d
SET status = CASE WHEN r.number = 1 THEN d.status ELSE 'superseded' END,
    claim_token = CASE WHEN r.number = 1 THEN d.claim_token END,
    maybe_sent = d.maybe_sent OR (r.number = 1 AND r.maybe_sent)
FROM ranked AS r
WHERE d.id = r.id AND (r.number > 1 OR r.maybe_sent);

DROP INDEX coordinator_digests_open_idx;
ALTER TABLE coordinator_digests DROP CONSTRAINT coordinator_digests_once;
CREATE UNIQUE INDEX coordinator_digests_one_open ON coordinator_digests (coordinator_id)
    WHERE status IN ('pending', 'failed', 'cancelled');
