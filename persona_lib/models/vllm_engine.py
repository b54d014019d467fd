"""vLLM in this process, behind the interface of ``generate``: an optional engine for machines with a GPU.

Prompts go in as token ids (a text would get a second BOS) and token ids come back, so that texts are made
and cut by the same code as with transformers. Prompts that begin alike share their keys and values
(prefix caching), and adapters of one base are served side by side, one per request. Its LoRA kernels work in
16 bits only, so adapters are rounded to bfloat16 there. Written against the source of vLLM 0.30.0, which
``constraints-vllm.txt`` pins; it has not been run by us: there was no GPU.
"""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_lib.models.generate import Completion, Sampling, to_completion
from persona_lib.provenance import package_versions

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for max_lora_rank
ON_GPU = 4  # adapters in GPU memory at a time; the others wait in main memory
LOADED: dict[tuple, Any] = {}  # the one engine of this process: it takes nearly all of a GPU's memory
CHUNK = 512  # prompts given to the engine at a time: what is finished is on disk after each


def engine_arguments(source: str, revision: str, dtype: str, ranks: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``; ``ranks`` are those of the adapters that it will serve.

    Raises ValueError for a rank above vLLM's largest.
    """
    arguments = {
        "model": source,
        "revision": revision or None,
        "tokenizer_revision": revision or None,
        "dtype": dtype,  # "auto" would make float16 of float32 weights
        "seed": 0,
        "max_model_len": -1,  # what fits into memory, at most the model's own
        "generation_config": "vllm",  # no sampling defaults of the model's authors
        "enable_prefix_caching": True,
    }
    if not ranks:
        return arguments
    if max(ranks) > RANKS[-1]:
        raise ValueError(f"an adapter has rank {max(ranks)}; vLLM takes at most {RANKS[-1]}")
    return arguments | {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= max(ranks)),
        "max_loras": min(len(ranks), ON_GPU),
        "max_cpu_loras": len(ranks),
    }


def load_engine(source: str, revision: str, dtype: str, ranks: Sequence[int] = ()) -> Any:
    """Load a model into vLLM, or return the engine that is loaded already; another one is given up first.

    Raises ImportError with the mend if vLLM is not installed.
    """
    key = (source, revision, dtype, *ranks)
    if key in LOADED:
        return LOADED[key]
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing is reported to anyone
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "engine: vllm needs vLLM and a GPU: pip install -e '.[lab,vllm]' -c constraints-vllm.txt, or set "
            "engine: transformers"
        ) from error
    LOADED.clear()
    gc.collect()  # an engine ends when nobody holds it any more
    LOADED[key] = LLM(**engine_arguments(source, revision, dtype, ranks))
    return LOADED[key]


def lora_request(name: str, key: str, folder: Path) -> Any:
    """Return vLLM's handle for an adapter whose content ``key`` identifies.

    vLLM knows adapters by number and their cached prompts by name, so both are made of the key: an engine
    that is asked again later never mistakes one adapter for another.
    """
    from vllm.lora.request import LoRARequest

    name = f"{name}@{key}"
    number = zlib.crc32(name.encode()) % 2**31 or 1
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def sampling_arguments(
    index: int,
    max_new_tokens: int,
    stop: Sequence[str],
    min_new_tokens: int = 0,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Return the arguments of ``vllm.SamplingParams`` for one prompt; greedy without ``sampling``.

    vLLM draws for every request from a generator of its own, so each prompt gets a seed made of the
    run's seed and its place.
    """
    arguments = {
        "max_tokens": max_new_tokens,
        "min_tokens": min_new_tokens,
        "stop": list(stop),
        "include_stop_str_in_output": True,  # cut by to_completion, as everywhere
        "skip_special_tokens": False,
        "temperature": 0.0,
    }
    if sampling is None:
        return arguments
    return arguments | {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": zlib.crc32(f"{sampling.seed}-{index}".encode()),
    }


def read_output(output: Any, tokenizer: Any, stop: Sequence[str]) -> Completion:
    """Turn vLLM's ``RequestOutput`` into a completion; raises RuntimeError for one that was broken off."""
    (found,) = output.outputs
    if found.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM ended request {output.request_id} with finish_reason={found.finish_reason!r}"
        )
    completion = to_completion(tokenizer, list(found.token_ids), stop)
    reason = "stop" if "stop" in (completion.finish_reason, found.finish_reason) else "length"
    return Completion(completion.text, reason, completion.n_tokens)


class VllmGenerator:
    """A loaded vLLM engine that completes prompts, with one adapter or none.

    ``adapter`` is what ``lora_request`` returns; ``dtype`` is the precision that the engine was loaded in.
    """

    def __init__(
        self, engine: Any, tokenizer: Any, name: str, dtype: str, adapter: Any = None, chunk: int = CHUNK
    ) -> None:
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.dtype, self.adapter, self.chunk = dtype, adapter, chunk

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the completions besides weights and prompts."""
        return {
            "model": self.name,
            "adapters": [self.adapter.lora_name] if self.adapter else [],  # name and key
            "decoding": "greedy",
            "engine": f"vllm {package_versions().get('vllm', 'of unknown version')}",
            "dtype": self.dtype,
        }

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
        min_new_tokens: int = 0,
        prefix: str = "",
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) in order, ``chunk`` prompts at a time; greedy without ``sampling``.

        ``prefix`` is put before every prompt; vLLM computes what prompts have in common once.
        """
        from vllm import SamplingParams

        for start in range(0, len(prompts), self.chunk):
            indices = range(start, min(start + self.chunk, len(prompts)))
            how = (max_new_tokens, stop, min_new_tokens, sampling)
            outputs = self.engine.generate(
                [{"prompt_token_ids": self.tokenizer(prefix + prompts[i])["input_ids"]} for i in indices],
                [SamplingParams(**sampling_arguments(i, *how)) for i in indices],
                lora_request=self.adapter,
                use_tqdm=False,
            )
            for index, output in zip(indices, outputs, strict=True):
                yield index, read_output(output, self.tokenizer, stop)
