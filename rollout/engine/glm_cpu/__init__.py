"""GLM-5 in SGLang on a CPU: an external model package (`SGLANG_EXTERNAL_MODEL_PACKAGE`), for machines without a GPU.

SGLang's own model, loader, experts, absorbed attention, KV pool, prefix cache and scheduler do the work. Its
indexer and its sparse attention are CUDA kernels (0.5.20): `indexer` and `attention` stand in for those two, in
plain torch, with the same choice of rows as the trainer's. On a GPU nothing of this is loaded.
"""
