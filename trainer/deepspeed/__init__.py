"""DeepSpeed ranks: any causal language model of transformers, ZeRO 0 to 3. The only place that knows it."""
