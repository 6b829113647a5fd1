"""What runs a model: one `Runtime` each, and the session that it opens."""
