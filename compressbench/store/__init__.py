"""Content-addressed store of stage results, exports and measurements, so none is computed twice."""
