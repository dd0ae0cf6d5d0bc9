-- Shares of limits between nodes.
SELECT 1;
