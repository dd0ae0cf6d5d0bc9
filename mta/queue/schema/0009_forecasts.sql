-- Forecasts, kept to be compared with what happened.

CREATE TABLE mta.forecast (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id   bigint NOT NULL REFERENCES mta.delivery,
    made_at       timestamptz NOT NULL,
    rules         text NOT NULL,                        -- file that it was made with; empty: the built-in rule
    recipients    bigint NOT NULL,                      -- that were waiting then
    finish_at     timestamptz NOT NULL,
    detail        jsonb NOT NULL,                       -- mta.simulation.forecast.Forecast
    -- Once the delivery has ended: when, and by how much of the real time the forecast was wrong (+: too late).
    ended_at      timestamptz,
    error_percent double precision
);
CREATE INDEX forecast_delivery ON mta.forecast (delivery_id, made_at);
CREATE INDEX forecast_open ON mta.forecast (delivery_id) WHERE ended_at IS NULL;
