-- Duplicates: an address that stands twice in a delivery is mailed once.

ALTER TABLE mta.delivery
    ADD kind text NOT NULL DEFAULT 'campaign' CHECK (kind IN ('campaign', 'transactional')),
    -- What was made before this has nobody looked at, as it was promised then.
    ADD duplicates text NOT NULL DEFAULT 'keep' CHECK (duplicates IN ('keep', 'exclude')),
    ADD duplicates_ignore_case boolean NOT NULL DEFAULT false;

ALTER TABLE mta.delivery_append ADD duplicates integer NOT NULL DEFAULT 0;  -- of its recipients: excluded as duplicates

-- A part of a delivery that excludes duplicates waits to be looked at: until then its due_at is the year 9999, and when it
-- is to be due stands here. So claims, pauses, cancellations and the end of the validity know nothing of it.
ALTER TABLE mta.delivery_part ADD due_when_checked timestamptz;
CREATE INDEX delivery_part_unchecked ON mta.delivery_part (delivery_id) WHERE due_when_checked IS NOT NULL;

-- Addresses of a delivery that were looked at while more could be appended, as they are compared; gone when it is sealed
-- or over. Each look adds a row for each bucket that it has addresses of; a bucket is 12 bits of an address's hash, so that a
-- small append reads a small part of a large delivery.
CREATE TABLE mta.delivery_address (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id bigint NOT NULL,
    bucket      smallint NOT NULL,
    addresses   text[] NOT NULL
);
-- Stored as it is, like parts.
ALTER TABLE mta.delivery_address ALTER COLUMN addresses SET STORAGE EXTERNAL;
CREATE INDEX delivery_address_bucket ON mta.delivery_address (delivery_id, bucket);

-- As before, but that a part of a delivery that excludes duplicates is due when it was looked at for them.
CREATE OR REPLACE FUNCTION mta.append_part(
    delivery_id bigint, key text, fields text[], recipients jsonb, due_at timestamptz DEFAULT now()
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    found_delivery  record;
    found_append    record;
    fault           text;
    packed          bytea;
    packed_digest   bytea;
    new_append_id   bigint;
    wanted_at       timestamptz;
BEGIN
    IF delivery_id IS NULL OR key IS NULL OR fields IS NULL OR recipients IS NULL THEN
        RAISE EXCEPTION 'mta.append_part: delivery_id, key, fields and recipients must not be null'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    fault := CASE
        WHEN length(key) NOT BETWEEN 1 AND 200 THEN 'key: must have 1 to 200 characters'
        WHEN key ~ '[\x01-\x1f]' THEN 'key: holds a control character'
        WHEN cardinality(fields) > 200 THEN 'fields: more than 200'
        WHEN jsonb_typeof(recipients) <> 'array' THEN 'recipients: must be an array'
        WHEN jsonb_array_length(recipients) NOT BETWEEN 1 AND 10000 THEN 'recipients: must be 1 to 10000'
        WHEN (SELECT count(*) <> count(DISTINCT f) FROM unnest(fields) f) THEN 'fields: a name is null or there twice'
        WHEN EXISTS (SELECT FROM unnest(fields) f WHERE f !~ '^[A-Za-z_][A-Za-z0-9_-]{0,63}$')
            THEN 'fields: a name must be a letter or _, then letters, digits, _ or -, 64 at most'
    END;
    IF fault IS NULL THEN
        SELECT format('recipients[%s]%s', ord - 1, f) INTO fault
        FROM jsonb_array_elements(recipients) WITH ORDINALITY AS one (recipient, ord),
             mta.recipient_fault(recipient, fields) AS f
        WHERE f IS NOT NULL ORDER BY ord LIMIT 1;
    END IF;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'mta.append_part: %', fault USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Domains in lower case, so that one mailbox has one form (RFC 5321 §2.4: local parts keep their case).
    SELECT convert_to(jsonb_agg(jsonb_build_array(
               regexp_replace(recipient ->> 0, '@[^@]*$', '') || lower(substring(recipient ->> 0 FROM '@[^@]*$')),
               recipient -> 1, coalesce(recipient -> 2, '[]')) ORDER BY ord)::text, 'UTF8')
    INTO packed FROM jsonb_array_elements(recipients) WITH ORDINALITY AS one (recipient, ord);
    IF octet_length(packed) > 16777216 THEN
        RAISE EXCEPTION 'mta.append_part: recipients: more than 16777216 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    packed_digest := sha256(convert_to(to_jsonb(fields)::text || E'\n', 'UTF8') || packed);

    -- Appends hold this lock shared, the seal exclusively: what is sealed is complete. It is not a lock on the
    -- delivery's row, so that pausing and cancelling never wait for an application's open transaction.
    PERFORM pg_advisory_xact_lock_shared(20180, (append_part.delivery_id & 2147483647)::int);
    -- Conflicts with no change but sealing and the start of waves, see delivery_seal.
    SELECT d.state, d.sealed, d.duplicates = 'exclude' AS is_checked,
           CASE WHEN d.last_wave_at > now() THEN d.last_wave_at END AS wave_at
    INTO found_delivery FROM mta.delivery d WHERE d.id = append_part.delivery_id FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'mta.append_part: there is no delivery %', append_part.delivery_id
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Before the state: the same append again has the same answer for ever, also after the seal.
    SELECT a.append_id, a.digest INTO found_append FROM mta.delivery_append a
    WHERE a.delivery_id = append_part.delivery_id AND a.key = append_part.key;
    IF NOT FOUND THEN
        IF found_delivery.sealed OR found_delivery.state NOT IN ('editing', 'running', 'paused') THEN
            RAISE EXCEPTION 'mta.append_part: delivery % is %: nothing can be appended', append_part.delivery_id,
                CASE WHEN found_delivery.state IN ('editing', 'running', 'paused') THEN 'sealed' ELSE found_delivery.state END
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        INSERT INTO mta.delivery_append AS a (delivery_id, key, recipients, digest)
        VALUES (append_part.delivery_id, append_part.key, jsonb_array_length(append_part.recipients), packed_digest)
        ON CONFLICT DO NOTHING RETURNING a.append_id INTO new_append_id;
        IF new_append_id IS NOT NULL THEN
            wanted_at := greatest(coalesce(append_part.due_at, now()), found_delivery.wave_at);
            INSERT INTO mta.delivery_part (delivery_id, due_at, due_when_checked, appended_at, append_id, fields, count,
                                           recipients)
            VALUES (append_part.delivery_id,
                    CASE WHEN found_delivery.is_checked THEN '9999-01-01 00:00+00' ELSE wanted_at END,
                    CASE WHEN found_delivery.is_checked THEN wanted_at END,
                    coalesce(found_delivery.wave_at, now()), new_append_id, append_part.fields,
                    jsonb_array_length(append_part.recipients), packed);
            PERFORM pg_notify('mta', 'append ' || append_part.delivery_id);
            RETURN new_append_id;
        END IF;
        -- Another transaction appended this key between our look and our insert, and has committed.
        SELECT a.append_id, a.digest INTO STRICT found_append FROM mta.delivery_append a
        WHERE a.delivery_id = append_part.delivery_id AND a.key = append_part.key;
    END IF;
    IF found_append.digest <> packed_digest THEN
        RAISE EXCEPTION 'mta.append_part: key %: was appended before with other content', append_part.key
            USING ERRCODE = 'unique_violation';
    END IF;
    RETURN found_append.append_id;
END $$;
