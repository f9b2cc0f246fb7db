"""Sandboxes: the protocol, and the mechanism that agent programs (`rollout.harness`) and environments
(`envs.sandbox`) share: bubblewrap, who runs inside it, limits. `inside/` runs there, standard library only."""
