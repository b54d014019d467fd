"""Generation: batches, a shared prefix, and stop strings change no completion of another row."""

from __future__ import annotations

import pytest
from later import torch
from tiny import tiny_model, tiny_tokenizer

from persona_lib.models import generate

TEXT = "the cat sat on mat a dog ran far away one two three four five six x"


@pytest.fixture(scope="module")
def generator():
    tokenizer = tiny_tokenizer(words=TEXT.split())
    model = tiny_model(vocabulary=len(tokenizer)).eval()
    return generate.TransformersGenerator(model, tokenizer, "tiny", batch_size=4)


def run(generator, prompts, **kwargs):
    found = dict(generator.generate(prompts, max_new_tokens=12, stop=kwargs.pop("stop", ()), **kwargs))
    return [found[i] for i in range(len(prompts))]


def test_batched_completions_equal_those_of_one_prompt_at_a_time(generator):
    prompts = ["the cat", "a dog ran far away on the mat", "one", "two three four", "six five"]
    single = [run(generator, [p])[0] for p in prompts]
    assert run(generator, prompts) == single
    assert len({c.text for c in single}) > 1


@pytest.mark.parametrize(("penalty", "least"), [(1.0, 0), (1.4, 0), (1.0, 9)])
def test_greedy_tokens_are_those_of_transformers_own_generation(generator, penalty, least):
    tokenizer, prompts = generator.tokenizer, ["the cat", "a dog ran far away on the mat", "one"]
    ours = generate.TransformersGenerator(generator.model, tokenizer, "tiny", 4, repetition_penalty=penalty)
    for prompt, found in zip(prompts, run(ours, prompts, min_new_tokens=least), strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        how = {"do_sample": False, "logits_processor": generate.penalties(penalty, ids.shape[1])}
        how |= {"min_new_tokens": least or None, "pad_token_id": 0}
        theirs = generator.model.generate(ids, max_new_tokens=12, **how)
        assert found == generate.to_completion(tokenizer, theirs[0, ids.shape[1] :].tolist(), ())


def test_a_shared_prefix_changes_nothing_but_the_work(generator):
    prefix, prompts = "one two three four five six\n\n", ["Prompt: a dog", "Prompt: the cat sat on"]
    assert run(generator, prompts, prefix=prefix) == run(generator, [prefix + p for p in prompts])


def test_a_prefix_that_ends_inside_a_token_is_not_shared_but_still_right(generator):
    assert run(generator, ["t sat"], prefix="the ca") == run(generator, ["the cat sat"])


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
    prompts = ["the cat", "a dog ran far away on the mat", "one"]
    free = run(generator, prompts)
    word = free[0].text.split()[2]
    stopped = run(generator, prompts, stop=(word,))
    assert stopped[0].finish_reason == "stop" and word not in stopped[0].text
    for before, after in zip(free, stopped, strict=True):
        if word not in before.text:
            assert before == after


def test_cut_at_stop_cuts_at_the_first_of_several():
    assert generate.cut_at_stop("a\nPrompt: b<end>", ("<end>", "\nPrompt:")) == ("a", True)
    assert generate.cut_at_stop("a b", ("x",)) == ("a b", False)
