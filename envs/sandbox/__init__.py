"""Places where a policy's tools, agents and verifiers run. The protocol: `rlframe.sandbox.protocol`."""
