"""Repair of real, small Python packages: one mutation each, found by the package's own, hidden tests."""
