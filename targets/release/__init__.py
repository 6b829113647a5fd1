"""May this release be loaded, and how does it get into place? Signature, manifest, installation."""
