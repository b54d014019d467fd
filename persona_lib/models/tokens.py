"""From texts to token ids, checked: the boundary between prompt and completion, BOS, EOS, truncation.

Nothing here needs a library: every function takes a Hugging Face tokenizer and plain texts, and
tokenises exactly as TRL's trainers do (prompt and prompt + completion, with special tokens, EOS text
appended), so that what is checked here is what is trained on and what is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from persona_lib.prompts import ChatFormat, tailoring_prompt


class TokenError(ValueError):
    """Texts that cannot be tokenised faithfully; the message names the row and the mend."""


@dataclass(frozen=True)
class RowCounts:
    """What happens to the rows of one training file, counted before training (token counts include BOS, EOS).

    ``truncated`` rows lose the end of a completion and with it EOS; ``dropped`` rows have a prompt of
    ``max_length`` tokens or more, and TRL leaves them out.
    """

    rows: int
    truncated: int
    dropped: int
    prompt_tokens: int
    completion_tokens: int
    longest: int


def check_tokenizer(tokenizer: Any) -> None:
    """Raise TokenError unless the tokenizer has an EOS and a pad token that differ.

    With pad == EOS a collator that masks padding also masks EOS, and the model never learns to stop.
    """
    if tokenizer.eos_token_id is None:
        raise TokenError("the tokenizer has no EOS token: set eos_token before saving it")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise TokenError(
            f"the pad token ({tokenizer.pad_token!r}) must exist and differ from EOS: set pad_token"
        )


def chat_text(tokenizer: Any, prompt: str) -> str:
    """Return a prompt as one user's message in the model's own chat format, open for the answer."""
    return tailoring_prompt(prompt, None, chat=chat_format(tokenizer))


def chat_format(tokenizer: Any) -> ChatFormat | None:
    """Return the pieces of the tokenizer's chat template, or None for a model without one.

    Where a template has no system turn (or merges it into the user's), the persona stands before the
    question. BOS is left out where the tokenizer adds it by itself.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    persona, prompt = "PERSONA-GOES-HERE", "PROMPT-GOES-HERE"

    def pieces(messages: list[dict[str, str]], *marks: str) -> tuple[str, ...]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found = []
        for mark in marks:
            before, there, text = text.partition(mark)
            if not there:
                raise TokenError(f"the chat template leaves out the {messages[0]['role']} turn")
            found.append(before)
        if adds_bos(tokenizer):
            found[0] = found[0].removeprefix(tokenizer.bos_token)
        return (*found, text)

    user = {"role": "user", "content": prompt}
    try:
        told = pieces([{"role": "system", "content": persona}, user], persona, prompt)
    except Exception:  # jinja2's own class where a template refuses a system turn, ours where it drops it
        told = pieces([{"role": "user", "content": f"{persona}\n\n{prompt}"}], persona, prompt)
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))
    return ChatFormat(told, pieces([user], prompt), tokenizer.eos_token, special)


def adds_bos(tokenizer: Any) -> bool:
    """Say whether the tokenizer puts BOS in front of every text by itself."""
    bos = tokenizer.bos_token
    return bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def encode(tokenizer: Any, prompt: str, completion: str, name: str = "row") -> tuple[list[int], list[int]]:
    """Return the ids of the prompt (with BOS if the tokenizer adds one) and of the completion with EOS.

    Raises TokenError naming the row if the prompt's tokens are not a prefix of the whole's (a token
    spans the boundary, so the model would train on another context than it sees when it generates),
    if BOS is doubled, or if the completion is empty.
    """
    eos = tokenizer.eos_token
    ended = completion if completion.endswith(eos) else completion + eos
    prompt_ids = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + ended)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and prompt_ids[:2] == [bos, bos]:
        raise TokenError(
            f"{name}: BOS is doubled: the prompt text starts with a literal {tokenizer.bos_token!r}"
        )
    if whole[: len(prompt_ids)] != prompt_ids:
        around = tokenizer.decode(prompt_ids[-2:]) + "|" + completion[:12]
        raise TokenError(
            f"{name}: a token spans the boundary between prompt and completion ({around!r}): "
            "see prompts.completion_text, and the prompt must not end in a space"
        )
    if len(whole) - len(prompt_ids) < 2:
        raise TokenError(f"{name}: the completion is empty: drop the row before training")
    return prompt_ids, whole[len(prompt_ids) :]


def count_rows(
    tokenizer: Any,
    rows: Iterable[Mapping[str, str]],
    completions: tuple[str, ...],
    max_length: int,
    where: str,
    drops: bool = True,
) -> RowCounts:
    """Check every row and count what training will do to it.

    ``completions`` names the columns that follow the prompt: ("completion",) or ("chosen", "rejected").
    ``drops`` says whether TRL drops rows whose prompt fills ``max_length`` (it does unless the loss is
    on prompts too). Raises TokenError (see ``encode``), also if there are no rows or all would be dropped.
    """
    total = truncated = dropped = prompt_tokens = completion_tokens = longest = 0
    for row in rows:
        names = [f"{where}, row {row['id']}, {column}" for column in completions]
        encoded = [
            encode(tokenizer, row["prompt"], row[c], n) for c, n in zip(completions, names, strict=True)
        ]
        prompt = len(encoded[0][0])
        lengths = [prompt + len(ids) for _, ids in encoded]
        total += 1
        lost = drops and prompt >= max_length
        dropped += lost
        truncated += not lost and max(lengths) > max_length
        prompt_tokens += prompt
        completion_tokens += sum(lengths) - prompt * len(lengths)
        longest = max(longest, *lengths)
    if total == dropped:
        mend = f"raise max_length={max_length}" if total else "no row has the persona that is trained on"
        raise TokenError(f"{where}: none of {total} rows can be trained on: {mend}")
    return RowCounts(total, truncated, dropped, prompt_tokens, completion_tokens, longest)
