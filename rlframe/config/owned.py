"""Options of other libraries that follow from rlframe's own keys, and the key that sets each.

They are refused where they are passed through, because two sources of one truth would part. `{role}`
is `policy` or `critic`. Options that nobody may set have the reason instead of a key.
"""

from __future__ import annotations

from collections.abc import Mapping

SGLANG: Mapping[str, str] = {
    "model_path": "model.path",
    "tokenizer_path": "model.tokenizer",
    "dtype": "model.dtype",
    "device": "cluster.device",
    "random_seed": "seed",
}
SGLANG_FIXED: Mapping[str, str] = {
    "host": "the address is chosen at start",
    "port": "the port is chosen at start",
    "api_key": "keys are made for each run",
    "admin_api_key": "keys are made for each run",
    "weight_version": "versions count the steps",
    "skip_tokenizer_init": "engines take and give token ids",
    "tokenizer_worker_num": "engines take and give token ids",
    "nnodes": "an engine stays on one node",
    "node_rank": "an engine stays on one node",
    "dist_init_addr": "an engine stays on one node",
}
TEACHER_SGLANG: Mapping[str, str] = {
    "model_path": "teachers.manifest",
    "tokenizer_path": "teachers.manifest",
    "device": "cluster.device",
    "random_seed": "seed",
}
TEACHER_SGLANG_FIXED: Mapping[str, str] = {
    **SGLANG_FIXED,
    "dtype": "a teacher is served in the dtype of its checkpoint",
}
ROUTER: Mapping[str, str] = {"worker_urls": "rollout.engines"}
ROUTER_FIXED: Mapping[str, str] = {
    "host": "the address is chosen at start",
    "port": "the port is chosen at start",
    "api_key": "keys are made for each run",
    "control_plane_api_keys": "keys are made for each run",
}
TRANSFORMER: Mapping[str, str] = {
    "num_layers": "model.hf_config.num_hidden_layers",
    "hidden_size": "model.hf_config.hidden_size",
    "ffn_hidden_size": "model.hf_config.intermediate_size",
    "num_attention_heads": "model.hf_config.num_attention_heads",
    "num_query_groups": "model.hf_config.num_key_value_heads",
    "kv_channels": "model.hf_config.head_dim",
    "layernorm_epsilon": "model.hf_config.rms_norm_eps",
    "init_method_std": "model.hf_config.initializer_range",
    "add_qkv_bias": "model.hf_config.attention_bias",
    "activation_func": "model.hf_config.hidden_act",
    "tensor_model_parallel_size": "trainer.{role}.layout.tensor",
    "pipeline_model_parallel_size": "trainer.{role}.layout.pipeline",
    "sequence_parallel": "trainer.{role}.layout.sequence_parallel",
    "context_parallel_size": "trainer.{role}.layout.context",
    "expert_model_parallel_size": "trainer.{role}.layout.expert",
    "virtual_pipeline_model_parallel_size": "trainer.{role}.layout.virtual_pipeline",
    "pipeline_model_parallel_layout": "trainer.{role}.layout.pipeline_layers",
    "num_layers_in_first_pipeline_stage": "trainer.{role}.layout.pipeline_layers",
    "num_layers_in_last_pipeline_stage": "trainer.{role}.layout.pipeline_layers",
    "num_moe_experts": "model.hf_config.n_routed_experts",
    "moe_router_topk": "model.hf_config.num_experts_per_tok",
    "moe_ffn_hidden_size": "model.hf_config.moe_intermediate_size",
    "moe_shared_expert_intermediate_size": "model.hf_config.n_shared_experts",
    "moe_layer_freq": "model.hf_config.first_k_dense_replace",
    "moe_router_topk_scaling_factor": "model.hf_config.routed_scaling_factor",
    "params_dtype": "model.dtype",
    "pipeline_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}
_MODEL = "the model with packed sequences fixes it"
TRANSFORMER_FIXED: Mapping[str, str] = dict.fromkeys(
    (
        "normalization",
        "gated_linear_unit",
        "add_bias_linear",
        "qk_layernorm",
        "use_te_activation_func",
        "attention_dropout",
        "use_cpu_initialization",
        "perform_initialization",
        "variable_seq_lengths",
        "expert_tensor_parallel_size",
        "moe_router_score_function",
        "moe_router_enable_expert_bias",
        "moe_router_dtype",
        # A router's losses would not be divided by the actions of the mini-batch.
        "moe_router_load_balancing_type",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "multi_latent_attention",
    ),
    _MODEL,
)
OPTIMIZER: Mapping[str, str] = {
    "lr": "trainer.{role}.lr",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "params_dtype": "model.dtype",
    "use_distributed_optimizer": "trainer.{role}.ddp.use_distributed_optimizer",
    "overlap_param_gather": "trainer.{role}.ddp.overlap_param_gather",
}
HF_CONFIG: Mapping[str, str] = {"dtype": "model.dtype", "torch_dtype": "model.dtype"}
DEEPSPEED: Mapping[str, str] = {
    "optimizer": "trainer.{role}.optimizer",
    "scheduler": "trainer.{role}.lr_decay",
    "gradient_clipping": "trainer.{role}.optimizer.clip_grad",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "activation_checkpointing": "trainer.{role}.gradient_checkpointing",
}
DEEPSPEED_FIXED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "managed_gradient_accumulation",
        ),
        "a batch's micro-batches are planned by their tokens, step by step",
    ),
    "gradient_allreduce_op": "losses are divided by the actions of all ranks",
    "zero_allow_untested_optimizer": "the optimizer is rlframe's choice",
    "zero_force_ds_cpu_optimizer": "the optimizer is rlframe's choice",
    "tensor_parallel": "ranks are data parallel",
    "pipeline": "ranks are data parallel",
    "expert_parallel": "ranks are data parallel",
    "hybrid_engine": "engines generate",
    "autotuning": "it starts processes of its own",
    "checkpoint": "checkpoints are rlframe's, for any number of ranks",
    "data_efficiency": "batches are rlframe's",
    "compile": "it is not tried",
}
