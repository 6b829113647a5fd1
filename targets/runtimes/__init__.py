"""Runtimes: one `Runtime` for each software that executes a model, and the session that it opens."""
