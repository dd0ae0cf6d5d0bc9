-- Forecasts, kept to be compared with what happened.
SELECT 1;
