"""The guard: what an agent must not do is recognised, judged, and answered as if it had found nothing.

actions ─► shell/, python_code ─► facts ─► rules ─► flags ─► judge ─► verdict ─► dummy, substitute
"""
