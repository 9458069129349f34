-- One row with a sentence if the nightly run is overdue, no row if all is well. With the extensions pg_cron and pg_net,
-- this job posts the sentence to your own address every hour:
--
--     SELECT cron.schedule('watch-certjob', '15 * * * *', $$
--       SELECT net.http_post(url := 'https://hooks.example/certjob', body := jsonb_build_object('text', problem))
--       FROM ( … the statement below … ) AS watch
--     $$);
SELECT coalesce(
    'the last full run of certjob that did its work ended at ' || to_char(finished_at, 'YYYY-MM-DD HH24:MI TZ'),
    'certjob has never finished a full run'
) AS problem
FROM (
    SELECT max(finished_at) AS finished_at
    FROM certjob.job_runs
    WHERE command = 'run' AND organisation IS NULL AND outcome IN ('ok', 'attention')
        AND finished_at <= now() + interval '1 minute'  -- a later one was recorded by a wrong clock
) AS last
WHERE finished_at IS NULL OR finished_at < now() - interval '26 hours'
