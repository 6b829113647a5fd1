"""The report: one JSON file with a schema, and a page, a table and a line of text made from it alone."""
