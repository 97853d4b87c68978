"""Tasks: what models answer, how that is trained and judged; one file and one YAML each."""
