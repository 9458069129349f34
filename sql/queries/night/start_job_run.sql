-- Written before anything else, so that a run that dies shows.
INSERT INTO job_runs (id, command, as_of, organisation, host, version)
VALUES (%(id)s, %(command)s, %(today)s, %(organisation)s, %(host)s, %(version)s)
