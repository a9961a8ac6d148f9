"""What a study found: tables of results, statistics, figures and the report."""
