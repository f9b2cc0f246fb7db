"""The torch-native attention backend, that can also be told which rows to read."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from rollout.engine.cpu_attention import BatchedTorchAttention
from rollout.engine.glm_cpu.layout import layout_of
from rollout.engine.glm_cpu.sparse import attend


class TorchSparseAttention(BatchedTorchAttention):
    """Without `topk_indices` it is its parent."""

    def forward_extend(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ids = kwargs.pop("topk_indices", None)
        if ids is None:
            return super().forward_extend(q, k, v, *args, **kwargs)  # type: ignore[no-any-return]
        return self._sparse(q, k, v, *args, ids=ids, **kwargs)

    def forward_decode(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ids = kwargs.pop("topk_indices", None)
        if ids is None:
            return super().forward_decode(q, k, v, *args, **kwargs)  # type: ignore[no-any-return]
        return self._sparse(q, k, v, *args, ids=ids, **kwargs)

    def _sparse(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        *,
        ids: Tensor,
        **_: Any,
    ) -> Tensor:
        if save_kv_cache and k is not None:
            place = KVWriteLoc(forward_batch.out_cache_loc, None)
            self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
        pool = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        out = attend(
            q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim),
            pool.view(pool.shape[0], -1),
            ids,
            layout_of(forward_batch, self.req_to_token_pool.req_to_token),
            scale=layer.scaling,
            value_dim=layer.v_head_dim,
        )
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)
