"""A tiny random Llama, a word-level tokenizer and a run on disk, for tests that really train."""

import random
from dataclasses import replace
from pathlib import Path

from persona_lib import store
from persona_lib.models import load
from persona_lib.models.generate import Completion
from persona_lib.records import TailoringRow
from persona_lib.settings import Profile, Run, load_profile, set_field

WORDS = [f"w{i}" for i in range(50)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def tiny_tokenizer(bos: bool = True, words: list[str] = WORDS):
    """Word-level, split at white space; adds BOS; pad, BOS and EOS are distinct."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL, "Prompt:", "Persona:", "Response:", *words]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def tiny_model(mlp: int = 128, vocabulary: int = 64, kv_heads: int = 2):
    """A random Llama with float32 weights large enough that its predictions differ from row to row."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": mlp, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 512}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**sizes, **tokens, tie_word_embeddings=True, initializer_range=0.1)
    return LlamaForCausalLM(config)


def words(rng: random.Random, low: int, high: int) -> str:
    """Some words of the tiny vocabulary."""
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def tiny_rows(n: int, seed: int = 0, split: str = "train") -> list[TailoringRow]:
    """Rows with both personas; texts are random words of different lengths."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        texts = [words(rng, 3, 9) for _ in range(3)]
        personas = {f"gold-{side}": words(rng, 2, 5) for side in ("chosen", "rejected")}
        rows.append(TailoringRow(f"{split}-{seed}-{i}", split, *texts, personas))
    return rows


TINY = {  # apart from sizes: the plain way of everything, whatever the default profile chooses
    "training.packing": False,
    "training.validation_rows": 0,
    "evaluation.limit": 0,
    "evaluation.controls": True,
    "training.arms": ["none", "chosen"],
    "training.warmup": 0.0,
    "generation.repetition_penalty": 1.0,
    "lora.r": 4,
    "training.max_length": 64,
    "sft.learning_rate": 1e-2,
    "sft.epochs": 2,
    "dpo.learning_rate": 5e-3,
    "dpo.epochs": 2,
    "dpo.batch_size": 4,
    "dpo.max_steps": 0,
    "dpo.beta": 0.5,
    "dpo.sft_weight": 4.0,
}


def save_base(folder: Path, model=None) -> Path:
    """Save a tiny base model with its tokenizer."""
    (model or tiny_model()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_run(results: Path, monkeypatch, n: int = 16, merge_adapters: bool = False, **changes) -> Run:
    """A run whose base model and tailoring data are on disk, below ``results``."""
    monkeypatch.setenv("PERSONA_RESULTS", str(results))
    base = {"base.model": str(results / "base")}
    monkeypatch.setattr(Profile, "merge_adapters", merge_adapters)  # else beside the weights
    profile = set_field(load_profile("everyday"), {**TINY, **base, **changes})
    run = Run(profile, profile.datasets[0], 0)
    save_base(results / "base")
    for seed, name in enumerate(("sft_train", "dpo_train", "sft_val", "dpo_val")):
        rows = tiny_rows(n if "train" in name else 6, seed=seed)
        store.write_rows(run.folder / "tailoring" / f"{name}.jsonl", rows)
    return run


def tiny_policies(results: Path, monkeypatch, *adapters: str, **changes) -> Run:
    """A tiny run with six test rows and one without responses, and random adapters of these names."""
    run = tiny_run(results, monkeypatch, **changes)
    rows = tiny_rows(6, seed=9, split="test")
    rows.append(replace(rows[0], id="no-response", chosen="", rejected=""))
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    store.mark_done(run.folder / "tailoring", "tiny rows")
    for seed, name in enumerate(adapters):
        folder = save_adapter(run.base_source[0], run.folder / "adapters" / name, seed)
        store.mark_done(folder, f"key of {name}")
    return run


class Echo:
    """A generator that answers with its prompt, last prompt first; it can be killed after some answers."""

    name = "echo"

    def __init__(self, die_after: int = -1, say="answer to {}".format) -> None:
        self.asked, self.die_after, self.say = [], die_after, say

    def generate(self, prompts, max_new_tokens, stop, min_new_tokens=0):
        for index, prompt in reversed(list(enumerate(prompts))):
            if len(self.asked) == self.die_after:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            yield index, Completion(self.say(prompt), "stop", 9)


def save_adapter(base_folder, folder, seed):
    """Save an adapter with random weights (both matrices), so that it changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load.load_base(base_folder), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


def some_texts() -> tuple[list[str], list[tuple[str]]]:
    """Nine prompts and completions of random lengths, as `load.pair_log_probs` takes them."""
    rng = random.Random(1)
    prompts = [f"Prompt: {words(rng, 2, 12)}\nResponse:" for _ in range(9)]
    return prompts, [(f" {words(rng, 1, 15)}",) for _ in range(9)]
