"""Releases: may a release be loaded, and its installation. Signature, manifest, versions, update files."""
