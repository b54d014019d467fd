"""Generation: batching, a shared prefix, stop strings and resuming do not change what is generated."""

import pytest
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


def test_a_common_beginning_leaves_every_row_a_token_and_is_not_shared_if_short(monkeypatch):
    monkeypatch.setattr(generate, "LEAST_SHARED", 2)
    assert generate.common_head([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 4]]) == [1, 2]
    assert generate.common_head([[1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]) == [1, 2]
    assert generate.common_head([[1, 2, 3]]) == generate.common_head([[1, 2], [1, 3]]) == []


def test_a_stop_string_ends_its_own_row_only_and_is_cut_off(generator):
    prompts = ["the cat", "a dog ran far away on the mat", "one"]
    free = run(generator, prompts)
    word = free[0].text.split()[2]
    stopped = run(generator, prompts, stop=(word,))
    assert stopped[0].finish_reason == "stop" and word not in stopped[0].text
    for before, after in zip(free, stopped, strict=True):
        if word not in before.text:
            assert before == after


def test_running_into_the_limit_is_said(generator):
    (completion,) = run(generator, ["the cat"])
    assert (completion.finish_reason, completion.n_tokens) in {("length", 12), ("stop", completion.n_tokens)}
    limited = dict(generator.generate(["the cat"], max_new_tokens=1, stop=()))[0]
    assert limited.n_tokens <= 1


def test_cut_at_stop_cuts_at_the_first_of_several():
    assert generate.cut_at_stop("a\nPrompt: b<end>", ("<end>", "\nPrompt:")) == ("a", True)
    assert generate.cut_at_stop("a b", ("x",)) == ("a b", False)
