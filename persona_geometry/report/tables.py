"""What a table and one of its rows are to the type checker, which takes most selections of a table for a column."""

from typing import Any

Table = Any  # a pandas DataFrame
Row = Any  # a pandas Series, or a row of `itertuples`
