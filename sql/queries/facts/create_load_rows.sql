-- Where a batch of a CSV file is staged. It lives inside the transaction, so it works through a transaction-mode pooler;
-- under --strict all batches share one transaction and the table.
CREATE TEMPORARY TABLE IF NOT EXISTS load_rows (
    organisation_id     uuid NOT NULL,
    member_no           text NOT NULL,
    full_name           text,
    email               text,
    locale              text,
    dynamics_contact_id uuid,
    kind                text NOT NULL,
    issued_on           date NOT NULL,
    expires_on          date NOT NULL,
    revoked_on          date,
    mentor_id           uuid
) ON COMMIT DROP
