"""Ways to look into a study: figures, a one-file report, status, dashboard."""
