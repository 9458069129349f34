-- COPY is the fastest way in.
COPY pg_temp.load_rows (
    organisation_id, member_no, full_name, email, locale, dynamics_contact_id, kind, issued_on, expires_on, revoked_on
) FROM STDIN
