-- Appending from plain SQL, so that an application enqueues inside its own transaction.

-- Never searched by. It makes sealed a key column, so that sealing is a key update and only that: an append's
-- FOR KEY SHARE then goes along with every other change of the row, and an append whose REPEATABLE READ snapshot
-- is older than the seal fails (40001) instead of slipping in after it.
CREATE UNIQUE INDEX delivery_seal ON mta.delivery (id, sealed);

-- What is wrong with an address, or null. Stricter than the grammar: a dot-atom (RFC 5322 §3.2.3, with UTF-8 as in
-- RFC 6531 §3.3) at a domain of A-labels. Quoted local parts and U-label domains need the program's own append.
CREATE FUNCTION mta.address_fault(address text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    local_part  text := regexp_replace(address, '@[^@]*$', '');
    domain_part text := substr(address, length(local_part) + 2);
    atom        CONSTANT text := '[A-Za-z0-9!#$%&''*+/=?^_`{|}~\u0080-\U0010FFFF-]+';
BEGIN
    IF address ~ '[\x01-\x20\x7f-\xa0\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]'
    THEN RETURN 'holds a space, a control character or an invisible one'; END IF;
    IF strpos(address, '@') = 0 THEN RETURN 'has no @'; END IF;
    IF local_part !~ ('^' || atom || '(\.' || atom || ')*$') THEN RETURN 'has a local part that is not a dot-atom'; END IF;
    IF octet_length(local_part) > 64 THEN RETURN 'has a local part of more than 64 octets'; END IF;
    IF domain_part ~ '[^\x01-\x7f]' THEN RETURN 'has a domain that is not ASCII: give its A-labels (xn--...)'; END IF;
    IF domain_part !~* '^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'
    THEN RETURN 'has a domain that is not a host name'; END IF;
    -- A path is at most 256 octets with its angle brackets (RFC 5321 §4.5.3.1.3).
    IF octet_length(address) > 254 THEN RETURN 'has more than 254 octets'; END IF;
    RETURN NULL;
END $$;

-- What is wrong with one recipient, ["address", "reference" or null, ["value", ...]], or null.
CREATE FUNCTION mta.recipient_fault(recipient jsonb, fields text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault   text;
    bad     bigint;
BEGIN
    IF jsonb_typeof(recipient) <> 'array' OR jsonb_array_length(recipient) NOT BETWEEN 1 AND 3
        OR jsonb_typeof(recipient -> 0) <> 'string'
    THEN RETURN ': must be ["address", "reference" or null, ["value", ...]]'; END IF;
    fault := mta.address_fault(recipient ->> 0);
    IF fault IS NOT NULL THEN RETURN '.address: ' || left(recipient ->> 0, 100) || ': ' || fault; END IF;
    IF jsonb_typeof(coalesce(recipient -> 1, 'null')) NOT IN ('string', 'null')
    THEN RETURN '.reference: must be a string or null'; END IF;
    IF length(recipient ->> 1) > 200 THEN RETURN '.reference: is longer than 200 characters'; END IF;
    IF recipient ->> 1 ~ '[\x01-\x1f]' THEN RETURN '.reference: holds a control character'; END IF;
    IF jsonb_typeof(coalesce(recipient -> 2, '[]')) <> 'array' THEN RETURN '.values: must be an array'; END IF;
    IF coalesce(jsonb_array_length(recipient -> 2), 0) <> cardinality(fields)
    THEN RETURN format('.values: has %s values for %s fields', coalesce(jsonb_array_length(recipient -> 2), 0),
                       cardinality(fields)); END IF;
    -- Looked at as one text first: nearly every row is good, and a JSON text shows each control character as an escape.
    IF octet_length((recipient -> 2)::text) < 65536 AND (recipient -> 2)::text !~ '\\[bfnrtu]|\x7f'
        AND NOT jsonb_path_exists(recipient, '$[2][*] ? (@.type() != "string")')
    THEN RETURN NULL; END IF;
    SELECT ord, CASE WHEN jsonb_typeof(v) <> 'string' THEN 'must be a string'
                     WHEN octet_length(v #>> '{}') > 65536 THEN 'is longer than 65536 bytes'
                     ELSE 'holds a control character' END
    INTO bad, fault
    FROM jsonb_array_elements(recipient -> 2) WITH ORDINALITY AS value (v, ord)
    WHERE jsonb_typeof(v) <> 'string' OR octet_length(v #>> '{}') > 65536 OR v #>> '{}' ~ '[\x01-\x1f\x7f]'
    ORDER BY ord LIMIT 1;
    RETURN '.' || fields[bad] || ': ' || fault;
END $$;

-- Append one part, in the caller's transaction; answers its append number. See docs/api.md.
CREATE FUNCTION mta.append_part(
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
    -- Conflicts with no change but sealing, see delivery_seal.
    SELECT d.state, d.sealed INTO found_delivery FROM mta.delivery d WHERE d.id = append_part.delivery_id FOR KEY SHARE;
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
            INSERT INTO mta.delivery_part (delivery_id, due_at, append_id, fields, count, recipients)
            VALUES (append_part.delivery_id, coalesce(append_part.due_at, now()), new_append_id, append_part.fields,
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

-- It runs with its owner's rights, so that an application needs no others than EXECUTE; nobody has it unasked.
REVOKE ALL ON FUNCTION mta.append_part(bigint, text, text[], jsonb, timestamptz) FROM PUBLIC;
