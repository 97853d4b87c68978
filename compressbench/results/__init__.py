"""Reports, Pareto fronts, tables and charts of runs and sweeps."""
