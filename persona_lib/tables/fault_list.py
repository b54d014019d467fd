"""The faults of the authors' code that the ablation measures, in words, and those that it cannot.

Files and lines are those of their public repository, Pinafore/alignment-personalization at commit e9e56e1.
"""

from __future__ import annotations

WHAT: dict[str, str] = {  # change -> what it is, and where in their code
    "as-is": "none: as this package does it",
    "baseline-verb": 'the baseline is told "I am ... and prefers ..." (inference of models without personas)',
    "ten-tokens": "at least ten new tokens, for SFT and DPO only (inference)",
    "dpo-tokens": "DPO without BOS, completions without their space (TRL 0.13, dpo_trainer.py:577-588)",
    "sft-loss": "SFT loss on question and persona, too (SFT/train.py:76-102)",
    "all-of-these": "verb, ten tokens, DPO tokens and SFT loss together",
    "bfloat16": "adapters in bfloat16 (not theirs: what TRL makes of QLoRA today)",
    "shuffled": "no fault but a control that they lack: PT trained on other rows' personas",
    "unreadable-wins": "an unreadable answer is a win in one order, a tie in the other (win_rate.py:94)",
    "contradictions": "a judge that contradicts itself on swapping counts as a tie (win_rate.py:92-95)",
    "merged": "items with one instruction text are merged (win_rate.py:92-95)",
}
NOT_MEASURED: dict[str, str] = {  # fault -> why it has no number here
    "the judge of quality is shown the persona (run_judge.py:124,133)": "the oracle reads by rule; "
    "for language models: judge_quirks=persona_in_question",
    '"Prompt: Prompt:" before what is judged (run_judge.py:84-86)': "the same; judge_quirks=repeated_label",
    "the judge is sampled at temperature 1 without a seed": "the oracle draws nothing; judge_decoding",
    "swapped judgments saved under the wrong names (run_judge.py:156-170)": "touches saved files, no verdict",
    "a mnemonic is judged without its beginning": "no mnemonics in this world; gen_beginning=released",
    "a literal <|end_of_text|> (prompt_loader.py:21)": "harmless with their own tokenizer",
    "the last 128 tokens of a prompt are kept": "none here is that long; part of dpo_tokenization",
    "no test prompts, SFT without responses (prompt_loader.py:27-55)": "the paper's runs did not have them",
}
