"""Persona vectors: made, compared, applied as operators, dosed against controls, traced to their writers, exported."""
