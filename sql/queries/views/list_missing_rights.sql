-- Rights that the night needs and this user lacks. A right on some columns will do: roles may be given just those.
SELECT needed.table_name, needed.privilege
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) WITH ORDINALITY AS needed (table_name, privilege, position)
WHERE NOT has_any_column_privilege('public.' || needed.table_name, needed.privilege)
ORDER BY needed.position
