"""The servers that we know, one row each."""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _llama_cpp
from gemma4_lora.servers import _mlx
from gemma4_lora.servers import _server
from gemma4_lora.servers import _sglang
from gemma4_lora.servers import _vllm


def _no_rules(adapter: _adapter.Adapter) -> Iterator[_server.Finding]:
  """PEFT reads all that a PEFT folder has."""
  del adapter
  yield from ()


_ROWS = (
    _server.Server(
        name='peft',
        version='peft 0.21.2',
        source='https://github.com/huggingface/peft',
        rules=_no_rules,
    ),
    _server.Server(
        name='vllm',
        version='vllm 0.33.0',
        source='https://github.com/vllm-project/vllm/tree/main/vllm/lora',
        rules=_vllm.rules,
        values_apart=True,
        experts='per_expert',
    ),
    _server.Server(
        name='sglang',
        version='sglang 0.5.23',
        source='https://github.com/sgl-project/sglang/tree/main/python/sglang/srt/lora',
        rules=_sglang.rules,
        one_rank=True,
        one_scale=True,
        names_alone=True,
        experts='per_expert',
    ),
    _server.Server(
        name='llama.cpp',
        version='llama.cpp of llama-cpp-python 0.3.36',
        source='https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py',
        rules=_llama_cpp.rules,
        one_scale=True,
    ),
    _server.Server(
        name='mlx',
        version='mlx-lm 0.32.2',
        source='https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner',
        rules=_mlx.rules,
        one_rank=True,
        one_scale=True,
        is_peft=False,
    ),
)
SERVERS = {row.name: row for row in _ROWS}
