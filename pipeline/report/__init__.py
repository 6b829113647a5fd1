"""How is a run reported? A JSON file with a schema; page, tables and terminal text are made from it alone."""
