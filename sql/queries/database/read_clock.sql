-- The database's own clock, which wishes carry: to tell those of before from those that come meanwhile.
SELECT clock_timestamp()
