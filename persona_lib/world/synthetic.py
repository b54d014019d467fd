"""The synthetic preference world: procedural preference data whose personas are known.

A response shows values of five binary dimensions (three of style, two of content) and states facts
about its topic. A preference pair contrasts one or two dimensions; the persona of a side names the
values that this side has and the other lacks. Everything can be read back by rule
(``persona_lib.world.oracle``), so every claim of the paper can be checked against the truth.

Topics are split once, by noun, into library (persona-bearing pretraining text), train, validation and
test. Nothing here calls a model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from persona_lib.profiles import Profile
from persona_lib.prompts import INFERENCE_INSTRUCTION, completion_text, inference_query, tailoring_prompt
from persona_lib.records import PreferencePair
from persona_lib.world.vocabulary import (
    COMMON,
    CONTENT_SENTENCES,
    DIMENSIONS,
    EXPERIMENT_TEMPLATES,
    FACT_COUNTS,
    FACT_PHRASES,
    FILLERS,
    HELD_OUT_FRAMES,
    LEXICON,
    MODIFIERS,
    NAMES,
    NOUNS,
    OPENERS,
    PLAIN_TEMPLATES,
    STORY_FRAMES,
    STYLE_ALWAYS,
    TOPIC_SPLITS,
    USUAL_SHARE,
    VARIANTS,
    VERBS,
    opposite,
)

Values = dict[str, str]  # dimension -> value shown
Claim = tuple[str, str]  # (dimension, value)
Segment = tuple[str, str]  # (text, kind): "text", "fact", "story" (answer), "query", "key" (persona)


@dataclass(frozen=True)
class Topic:
    """A thing to do something with; ``facts`` holds the one right filler per slot."""

    name: str
    verb: str
    noun: str
    split: str
    facts: dict[str, str]


def make_topics(world_seed: int) -> dict[str, Topic]:
    """Make all topics, keyed by name ("old kettle"), with facts drawn by the world seed.

    A domain has a usual filler per slot, right for a topic with ``USUAL_SHARE`` and else replaced by a
    random one: a model can know the rule and miss exceptions. All variants of a noun fall in the same
    split; each has its own exceptions.
    """
    rng = random.Random(f"world-{world_seed}")
    topics = {}
    for domain, nouns in NOUNS.items():
        order = rng.sample(nouns, len(nouns))
        splits = [split for split, count in TOPIC_SPLITS.items() for _ in range(count)]
        usual = {slot: rng.choice(words) for slot, words in FILLERS.items()}
        for noun, split in zip(order, splits, strict=True):
            for variant in VARIANTS:
                own = {slot: rng.choice(words) for slot, words in FILLERS.items()}
                facts = {slot: (usual if rng.random() < USUAL_SHARE else own)[slot] for slot in FILLERS}
                name = f"{variant} {noun}"
                topics[name] = Topic(name, VERBS[domain], noun, split, facts)
    return topics


def topics_of(topics: dict[str, Topic], *splits: str) -> list[Topic]:
    """Return the topics of some splits, in a fixed order."""
    return [topic for topic in topics.values() if topic.split in splits]


def render_prompt(topic: Topic, template: str, modifier: str) -> str:
    """Render one question about a topic."""
    return template.format(task=f"{topic.verb} my {topic.name}{modifier and ' ' + modifier}")


def all_prompts(topics: list[Topic], templates: tuple[str, ...]) -> list[tuple[Topic, str]]:
    """Return every (topic, prompt) of some topics and templates."""
    return [(t, render_prompt(t, template, m)) for t in topics for template in templates for m in MODIFIERS]


def sample_values(profile: Profile, rng: random.Random, fixed: Values) -> Values:
    """Draw the values that a response shows; ``fixed`` ones are kept.

    Length and format always show; tone and the content dimensions show with ``shown_share``.
    """
    values = dict(fixed)
    for dimension, options in DIMENSIONS.items():
        if dimension not in values and (dimension in STYLE_ALWAYS or rng.random() < profile.shown_share):
            values[dimension] = rng.choice(options)
    return values


def render_response(topic: Topic, values: Values, rng: random.Random) -> str:
    """Write a response that shows the values and states right facts about the topic.

    Which facts (one in a brief response, three in a detailed one) and the wording of a value are random.
    """
    count = FACT_COUNTS[values["length"]]
    slots = sorted(rng.sample(list(FILLERS), count), key=list(FILLERS).index)
    facts = [FACT_PHRASES[slot].format(topic.facts[slot]) for slot in slots]
    contents = [
        rng.choice(CONTENT_SENTENCES[values[d]]) for d in DIMENSIONS if values.get(d) in CONTENT_SENTENCES
    ]
    opener = rng.choice(OPENERS[values["tone"]]) + " " if "tone" in values else ""
    if values["format"] == "list":
        lines = [f"{n}. {fact[0].upper()}{fact[1:]}." for n, fact in enumerate(facts, start=1)]
        return "\n".join([f"{opener}For the {topic.name}:", *lines, *contents])
    listed = f"{', '.join(facts[:-1])} and {facts[-1]}" if len(facts) > 1 else facts[0]
    body = f"{opener}For the {topic.name}, {listed}."
    return " ".join([body, *contents])


def persona_sentence(
    claims: list[Claim], rng: random.Random, held_out: bool = False, frame: str | None = None
) -> str:
    """Write a persona of two claims: the first as what the user is, the second as what they prefer.

    ``held_out`` uses words that no training persona contains; ``frame`` another sentence frame.
    """
    part = "held_out" if held_out else "known"
    adjective = rng.choice(LEXICON[claims[0]]["adjectives"][part])
    phrase = rng.choice(LEXICON[claims[-1]]["phrases"][part])
    return (frame or "The user is {adjective} and prefers {phrase}.").format(
        adjective=adjective, phrase=phrase
    )


def sample_pair_values(profile: Profile, rng: random.Random) -> tuple[Values, Values, list[str]]:
    """Draw the values of a chosen and a rejected response, and the dimensions that they contrast.

    The chosen side has a contrasted dimension's common value with probability ``majority_share``.
    Other values are shared; a shared one is dropped from one side with ``slip_share``.
    """
    count = 2 if rng.random() < profile.second_contrast_share else 1
    contrasted = rng.sample(list(DIMENSIONS), count)
    chosen = {}
    for dimension in contrasted:
        common = COMMON[dimension]
        chosen[dimension] = common if rng.random() < profile.majority_share else opposite(dimension, common)
    rejected = {d: opposite(d, v) for d, v in chosen.items()}
    for dimension, value in sample_values(profile, rng, chosen).items():
        if dimension in contrasted:
            continue
        drop = dimension not in STYLE_ALWAYS and rng.random() < profile.slip_share
        sides = [rng.choice((chosen, rejected))] if drop else [chosen, rejected]
        for side in sides:
            side[dimension] = value
    return chosen, rejected, contrasted


def claims_of(values: Values, contrasted: list[str]) -> list[Claim]:
    """Return the two claims of a side's persona: its values on the contrasted dimensions."""
    return [(d, values[d]) for d in (contrasted if len(contrasted) == 2 else contrasted * 2)]


def make_pair(
    profile: Profile, pair_id: str, topic: Topic, prompt: str, rng: random.Random
) -> PreferencePair:
    """Make one preference pair on a topic."""
    chosen, rejected, _ = sample_pair_values(profile, rng)
    return PreferencePair(
        pair_id, prompt, render_response(topic, chosen, rng), render_response(topic, rejected, rng)
    )


def make_pairs(profile: Profile, seed: int) -> dict[str, list[PreferencePair]]:
    """Make the preference data of one seed: splits train, validation and test, on disjoint topics.

    Prompts are drawn without replacement, so every prompt occurs once. Raises ValueError if a split
    asks for more rows than the world has prompts.
    """
    topics = make_topics(profile.world_seed)
    sizes = {"train": profile.n_train, "validation": profile.n_validation, "test": profile.n_test}
    pairs = {}
    for split, size in sizes.items():
        rng = random.Random(f"pairs-{profile.world_seed}-{seed}-{split}")
        prompts = all_prompts(topics_of(topics, split), EXPERIMENT_TEMPLATES)
        if size > len(prompts):
            raise ValueError(
                f"n_{split}={size}: the world has only {len(prompts)} {split} prompts; set n_{split} lower"
            )
        pairs[split] = [
            make_pair(profile, f"synthetic-{split}-{n:05d}", topic, prompt, rng)
            for n, (topic, prompt) in enumerate(rng.sample(prompts, size))
        ]
    return pairs


def user_persona(pair_id: str, claims: list[Claim]) -> str:
    """Write a persona as a user might: held-out words in a held-out sentence frame, fixed by the id."""
    rng = random.Random(f"user-{pair_id}-{claims}")
    return persona_sentence(claims, rng, held_out=True, frame=rng.choice(HELD_OUT_FRAMES))


# --- the text that the base model is pretrained on: documents as lists of (text, kind) ---

LEADS = "|".join(f"(?<={phrase.partition(' {')[0][1:]})" for phrase in FACT_PHRASES.values())
FACTS = re.compile(rf"((?:{LEADS}) \w+|(?<=or the) \w+ \w+)")
PERSONA_PARTS = re.compile(r"( The user is)(.*)( and prefers)(.*)(\.)")


def plain_document(profile: Profile, topics: list[Topic], rng: random.Random) -> list[Segment]:
    """A question with an answer, no persona; its question forms are not those of the experiments."""
    topic = rng.choice(topics)
    prompt = render_prompt(topic, rng.choice(PLAIN_TEMPLATES), rng.choice(MODIFIERS))
    response = render_response(topic, sample_values(profile, rng, {}), rng)
    return [(tailoring_prompt(prompt, None), "text"), *mark_facts(completion_text(response), "text")]


def mark_facts(text: str, kind: str) -> list[Segment]:
    """Mark the words that state a fact (" brush" in "use the brush") or name the topic; others: ``kind``."""
    parts = FACTS.split(text)  # text, filler, text, filler, ..., text
    return [(part, "fact" if n % 2 else kind) for n, part in enumerate(parts) if part]


def story_document(profile: Profile, topics: list[Topic], rng: random.Random) -> list[Segment]:
    """A person, what they are like and an answer they liked: library topics only.

    Here the model meets every word for a persona, the held-out ones too, in frames that neither the
    tailored models nor the baseline are tested with.
    """
    topic = rng.choice(topics)
    prompt = render_prompt(topic, rng.choice(PLAIN_TEMPLATES + EXPERIMENT_TEMPLATES), rng.choice(MODIFIERS))
    values, _, contrasted = sample_pair_values(profile, rng)
    if rng.random() < 0.5:  # both values of a dimension as often: stories have no majority
        values |= {d: opposite(d, values[d]) for d in contrasted}
    values = sample_values(profile, rng, values)
    claims = claims_of(values, contrasted)
    persona = persona_sentence(
        claims,
        rng,
        held_out=rng.random() < 0.4,
        frame=rng.choice(STORY_FRAMES + HELD_OUT_FRAMES),
    ).format(name=rng.choice(NAMES))
    response = render_response(topic, values, rng)
    return [
        (f"{persona} Asked: {prompt}\nLiked answer:", "text"),
        *mark_values(completion_text(response), claims),
    ]


def value_patterns(dimension: str, value: str) -> list[str]:
    """Return patterns whose group is the text by which a response shows a value."""
    if dimension == "format":
        return [r"For the \w+ \w+([:,])"]
    if dimension == "length":
        return [r"For the \w+ \w+[:,]\s(?:1\. )?[\w ]+([,.](?:\n2)?)"]
    sentences = (OPENERS if dimension == "tone" else CONTENT_SENTENCES)[value]
    return [f"([ \n]{re.escape(sentence)})" for sentence in sentences]


def mark_values(response: str, claims: list[Claim]) -> list[Segment]:
    """Mark what in an answer shows the values that its persona asks for."""
    patterns = [p for claim in dict.fromkeys(claims) for p in value_patterns(*claim)]
    spans = sorted(match.span(1) for pattern in patterns for match in re.finditer(pattern, response))
    cuts = [0, *(at for span in spans for at in span), len(response)]
    parts = [response[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    kinds = ("key" if n % 2 else "story" for n in range(len(parts)))
    segments = zip(parts, kinds, strict=True)
    return [
        s for part, kind in segments for s in ([(part, kind)] if kind == "key" else mark_facts(part, kind))
    ]


def inference_example(profile: Profile, topics: list[Topic], rng: random.Random) -> tuple[str, str, str, str]:
    """A solved persona-inference item (prompt, preferred, other, persona) on a library topic."""
    topic = rng.choice(topics)
    prompt = render_prompt(topic, rng.choice(PLAIN_TEMPLATES + EXPERIMENT_TEMPLATES), rng.choice(MODIFIERS))
    sides = list(sample_pair_values(profile, rng))
    contrasted = sides.pop()
    rng.shuffle(sides)
    preferred, other = (render_response(topic, values, rng) for values in sides)
    claims = rng.sample(claims_of(sides[0], contrasted), 2)
    return prompt, preferred, other, persona_sentence(claims, rng)


def inference_document(
    profile: Profile, topics: list[Topic], rng: random.Random, shots: int
) -> list[Segment]:
    """``shots`` solved items, after the instruction if there are several, with the personas' words marked."""
    segments: list[Segment] = [(INFERENCE_INSTRUCTION + "\n\n", "query")] if shots > 1 else []
    for n in range(shots):
        prompt, preferred, other, persona = inference_example(profile, topics, rng)
        query = inference_query(prompt, preferred, other)
        segments += mark_facts(query if n == 0 else "\n\n" + query, "query")
        start, adjective, middle, phrase, end = PERSONA_PARTS.fullmatch(f" {persona}").groups()
        segments += [(start, "text"), (adjective, "key"), (middle, "text"), (phrase, "key"), (end, "text")]
    return segments


def pretraining_documents(
    profile: Profile, base_seed: int, max_shots: int, phase: str
) -> Iterator[list[Segment]]:
    """Yield the world's text without end.

    No document holds a persona together with a prompt or response of a training, validation or test
    topic: personas occur on library topics only (tests/test_synthetic.py reads the text to prove it).
    """
    topics = make_topics(profile.world_seed)
    library, everything = topics_of(topics, "library"), list(topics.values())
    rng = random.Random(f"text-{profile.world_seed}-{base_seed}-{phase}")
    lengths = {"plain": 36, "inference": 78 * (1 + max_shots) / 2, "story": 50}  # mean tokens of a document
    shares = {kind: getattr(profile, f"base_share_{kind}") for kind in lengths}
    weights = [shares[kind] / lengths[kind] for kind in lengths]  # shares are of tokens
    while True:
        (kind,) = rng.choices(list(lengths), weights)
        if kind == "plain":
            yield plain_document(profile, everything, rng)
        elif kind == "story":
            yield story_document(profile, library, rng)
        else:
            yield inference_document(profile, library, rng, rng.randint(1, max_shots))
