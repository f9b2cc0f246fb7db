"""Teachers of on-policy distillation on SGLang engines: more teachers than engines, one service."""
