"""Programs that run in a peer's Python: they import the standard library and the peer's package, nothing of ours."""
