"""What runs inside a sandbox: standard library only, by whatever Python is there, nothing of rlframe."""
