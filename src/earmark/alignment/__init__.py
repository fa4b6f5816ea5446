"""Stage align: word times for every segment."""
