"""A content-addressed store: no stage, export or measurement is computed twice."""
