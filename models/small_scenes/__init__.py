"""A LLaVA small enough to ship that answers questions about pictures it never saw."""
