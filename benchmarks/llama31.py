"""Random weights of Llama-3.1-8B's architecture, of any size.

The configuration is that of the model's config.json, as a literal: nothing is downloaded. A smaller model
differs in sizes alone (``SMALL``); grouped-query attention, RoPE scaling, the untied head and the special
tokens stay. The tokenizer is made on the spot: byte-level BPE, as Llama 3's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona_lib.data import everyday
from persona_lib.models import load
from persona_lib.models.load import load_tokenizer
from persona_lib.prompts import completion_text, tailoring_prompt


def sizes(hidden: int, inner: int, layers: int, heads: int, shared: int) -> dict[str, int]:
    """Return a configuration's sizes; ``shared`` key-value heads serve all query heads."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    return dict(zip(names.split(), (hidden, inner, layers, heads, shared), strict=True))


LLAMA_31_8B: dict[str, Any] = {
    "vocab_size": 128256,
    **sizes(4096, 14336, 32, 32, 8),
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
# Four query heads per key-value head, as in the large models; every size a multiple of 64, for NF4.
SMALL = sizes(128, 448, 2, 8, 2)
LLAMA_3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]


def llama_tokenizer(texts: Iterable[str], merges: int = 500) -> Any:
    """Train a tokenizer built as Llama 3's: byte-level BPE, BOS in front, no pad token set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(LLAMA_3_SPECIAL)
    bos = LLAMA_3_SPECIAL[0]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=LLAMA_3_SPECIAL[1],
        clean_up_tokenization_spaces=False,
        model_max_length=LLAMA_31_8B["max_position_embeddings"],
    )


def llama_config(**sizes: Any) -> Any:
    """Return Llama-3.1-8B's configuration with some sizes changed."""
    from transformers import LlamaConfig

    return LlamaConfig(**{**LLAMA_31_8B, **sizes})


def ids_of(tokenizer: Any) -> dict[str, int]:
    """Return what a configuration takes from a tokenizer."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return ids | {"vocab_size": len(tokenizer)}


def random_base(
    config: Any,
    quantization: str = "none",
    compute_dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> Any:
    """Return a frozen model with random weights, as ``llm.load_base`` would load it from a checkpoint.

    Weights are drawn on the device one by one and, for NF4, put into four bits at once: there is no file and
    no copy in full precision. The same seed draws the same weights whatever the quantisation.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, compute_dtype))
    if quantization != "none":
        model.hf_quantizer = AutoHfQuantizer.from_config(load.nf4_config(compute_dtype))
        model.hf_quantizer.preprocess_model(model=model, device_map={"": device})
    draw_weights(model, device, torch.Generator(device).manual_seed(seed), config.initializer_range)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    if quantization != "none":
        model = model.hf_quantizer.postprocess_model(model)
        load.guard_nf4(model)
    return model.requires_grad_(False).eval()


def draw_weights(model: Any, device: str, generator: Any, std: float) -> None:
    """Give every parameter on the meta device a value: ones for norms, else normal with ``std``."""
    import torch
    from bitsandbytes.nn import Params4bit

    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if old.dim() == 1:
                new = torch.ones(old.shape, dtype=old.dtype, device=device)
            else:
                new = torch.randn(old.shape, generator=generator, device=device).mul_(std).to(model.dtype)
            if isinstance(old, Params4bit):
                kept = {
                    key: getattr(old, key) for key in ("compress_statistics", "quant_type", "quant_storage")
                }
                module.weight = Params4bit(new, module=module, **kept).to(device)
            else:
                setattr(module, name, torch.nn.Parameter(new, requires_grad=False))


def example_texts() -> list[str]:
    """Return texts of the package's own training pairs to train tokenizers on."""
    rows = (item for item in everyday.items() if item.split == "train")
    return [tailoring_prompt(item.prompt, None) + completion_text(item.response_a) for item in rows]


def example_tokenizer() -> Any:
    """Return a tokenizer built as Llama 3's, loaded as this package loads it (with a pad token)."""
    with tempfile.TemporaryDirectory() as folder:
        llama_tokenizer(example_texts()).save_pretrained(folder)
        return load_tokenizer(folder)


def save_llama(folder: Path, texts: Iterable[str], seed: int = 0, **sizes: Any) -> None:
    """Save a random Llama of 3.1's architecture and its tokenizer as a folder that hub code can load."""
    tokenizer = llama_tokenizer(texts)
    random_base(llama_config(**sizes, **ids_of(tokenizer)), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
