-- Under --strict the batch before is still in the table.
TRUNCATE pg_temp.load_rows
