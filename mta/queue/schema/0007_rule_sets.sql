-- Sets of rules that were applied, when and by whom.
SELECT 1;
