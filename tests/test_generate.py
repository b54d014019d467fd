"""Generation: batches, a shared beginning, and stop strings change no completion of another row."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import Lfm2Config, Lfm2ForCausalLM, RepetitionPenaltyLogitsProcessor

from persona_lib.models import generate

TEXT = "the cat sat on mat a dog ran far away one two three four five six x"
PROMPTS = ["the cat", "a dog ran far away on the mat", "one"]
MANY = [" ".join(TEXT.split()[n : n + 1 + n % 5]) for n in range(11)]  # rows that wait join a batch of four


@pytest.fixture(scope="module")
def generator():
    tokenizer = tiny_tokenizer(words=TEXT.split())
    model = tiny_model(256, len(tokenizer), kv_heads=1).eval()
    return generate.TransformersGenerator(model, tokenizer, "tiny", batch_size=4)


def run(generator, prompts, stop=(), **settings):
    found = dict(generator.generate(prompts, 12, stop, **settings))
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize(("penalty", "least"), [(1.0, 0), (1.4, 0), (1.0, 9)])
def test_greedy_tokens_are_those_of_transformers_own_generation(generator, penalty, least, monkeypatch):
    monkeypatch.setattr(generate, "JOINING", 2)
    model, tokenizer = generator.model, generator.tokenizer
    ours = generate.TransformersGenerator(model, tokenizer, "tiny", 4, repetition_penalty=penalty)
    lengths = set()
    for prompt, found in zip(MANY, run(ours, MANY, min_new_tokens=least), strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        processors = [RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=ids.shape[1])]
        how = {"do_sample": False, "min_new_tokens": least or None, "pad_token_id": 0}
        theirs = model.generate(ids, max_new_tokens=12, logits_processor=processors, **how)
        assert found == generate.to_completion(tokenizer, theirs[0, ids.shape[1] :].tolist(), ())
        lengths.add(found.n_tokens)
    assert least or len(lengths) > 3, "rows end at different steps"


def test_a_model_that_keeps_a_state_per_row_answers_as_with_transformers(generator):
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    layers = ["conv", "full_attention"]
    config = Lfm2Config(vocab_size=len(generator.tokenizer), num_hidden_layers=2, layer_types=layers, **size)
    torch.manual_seed(0)
    model = Lfm2ForCausalLM(config).eval()
    ours = generate.TransformersGenerator(model, generator.tokenizer, "tiny", 4)
    for prompt, found in zip(PROMPTS, run(ours, PROMPTS), strict=True):
        ids = torch.tensor([generator.tokenizer(prompt)["input_ids"]])
        theirs = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
        assert found == generate.to_completion(generator.tokenizer, theirs[0, ids.shape[1] :].tolist(), ())


def test_drawn_tokens_follow_the_seed_and_with_a_tiny_nucleus_are_the_greedy_ones(generator):
    def drawn(seed, top_p):
        return run(generator, PROMPTS, temperature=1.0, top_p=top_p, seed=seed)

    assert drawn(0, 1.0) == drawn(0, 1.0) != drawn(1, 1.0)
    assert drawn(0, 1e-6) == run(generator, PROMPTS)


def test_a_long_common_beginning_is_computed_once_and_changes_nothing(generator, monkeypatch):
    prompts = [f"one two three four five six {end}" for end in ("Prompt: a dog", "the cat sat on", "the mat")]
    plain, seen = run(generator, prompts), []
    monkeypatch.setattr(generate, "LEAST_SHARED", 6)
    hook = generator.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert run(generator, prompts) == plain
    hook.remove()
    head = len(generator.tokenizer("one two three four five six")["input_ids"])
    assert seen[0] == (1, head) and seen[1][0] == 3 and seen[1][1] < head


def test_a_stop_string_ends_its_own_row_only_and_is_cut_off(generator):
    free = run(generator, PROMPTS)
    word = free[0].text.split()[2]
    stopped = run(generator, PROMPTS, stop=(word,))
    assert stopped[0].finish_reason == "stop" and word not in stopped[0].text
    for before, after in zip(free, stopped, strict=True):
        if word not in before.text:
            assert before == after
    assert generate.cut_at_stop("a\nPrompt: b<end>", ("<end>", "\nPrompt:")) == ("a", True)
