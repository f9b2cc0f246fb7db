"""The GLM-5 family (`glm_moe_dsa`) on Megatron's parallel primitives."""
