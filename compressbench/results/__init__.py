"""What a run or a sweep came to: report, Pareto front, tables, pictures."""
