-- Traffic events: what is in force besides the rules, and what was.
SELECT 1;
