"""The words of the synthetic world: topics, dimensions, sentences, persona words and question forms."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    """Split a line of words."""
    return tuple(text.split())


# every noun is a topic in four variants; TOPIC_SPLITS says how many nouns of a domain go where
VARIANTS = ("old", "small", "new", "big")
TOPIC_SPLITS = {"library": 4, "train": 2, "validation": 2, "test": 2}
VERBS = {
    "kitchen": "clean",
    "workshop": "repair",
    "garden": "grow",
    "house": "paint",
    "bakery": "bake",
    "wardrobe": "sew",
    "farm": "train",
    "move": "pack",
}
NOUNS = {
    "kitchen": _words("kettle pan oven toaster mug fridge sink stove plate bottle"),
    "workshop": _words("bicycle scooter fence gate ladder chair door window roof pump"),
    "garden": _words("tomato rose basil tulip carrot pepper orchid cactus lettuce lemon"),
    "house": _words("wall shed boat desk shelf bench frame ceiling cabinet crate"),
    "bakery": _words("cake bread pie pizza cookie muffin tart bagel lasagna quiche"),
    "wardrobe": _words("shirt dress curtain pillow quilt jacket scarf apron skirt blanket"),
    "farm": _words("puppy parrot horse kitten rabbit goat pony falcon hamster ferret"),
    "move": _words("suitcase backpack tent trunk basket piano mirror statue telescope helmet"),
}

# facts: six slots, each with one right filler per topic
FACT_PHRASES = {
    "tool": "use the {}",
    "part": "check the {}",
    "material": "add some {}",
    "place": "work in the {}",
    "wait": "wait {} minutes",
    "time": "finish by {}",
}
USUAL_SHARE = 0.6  # probability that a topic's fact is its domain's usual one
FILLERS = {
    "tool": _words("brush hammer spoon needle roller clamp sponge knife"),
    "part": _words("handle edge base corner hinge surface label button"),
    "material": _words("vinegar oil sand water salt glue soap flour"),
    "place": _words("garage kitchen yard attic cellar garden hall barn"),
    "wait": _words("two three four five six seven eight nine"),
    "time": _words("noon dawn dusk midnight sunset breakfast lunch supper"),
}

# dimensions: two opposite values each; the first is the common one
DIMENSIONS = {
    "length": ("detailed", "brief"),
    "format": ("list", "prose"),
    "tone": ("casual", "formal"),
    "cost": ("frugal", "premium"),
    "company": ("group", "solo"),
}
COMMON = {dimension: values[0] for dimension, values in DIMENSIONS.items()}
FACT_COUNTS = {"brief": 1, "detailed": 3}
STYLE_ALWAYS = ("length", "format")  # every response has a length and a format
OPENERS = {
    "casual": ("Sure thing!", "Hey, easy!", "No worries!"),
    "formal": ("Certainly.", "With pleasure.", "At your service."),
}
CONTENT_SENTENCES = {
    "frugal": ("Choose the cheap kind.", "Save your money."),
    "premium": ("Buy the finest brand.", "Spend freely on quality."),
    "group": ("Invite your friends over.", "Ask neighbors to join."),
    "solo": ("Do it all alone.", "Keep it to yourself."),
}


def opposite(dimension: str, value: str) -> str:
    """Return the other value of a dimension."""
    first, second = DIMENSIONS[dimension]
    return second if value == first else first


def _entry(adjectives: str, phrases: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Split "known | held out" word lists (adjectives by space, phrases by comma)."""
    entry = {}
    for kind, text, separator in (("adjectives", adjectives, None), ("phrases", phrases, ",")):
        known, held_out = (tuple(w.strip() for w in part.split(separator)) for part in text.split("|"))
        entry[kind] = {"known": known, "held_out": held_out}
    return entry


# words for a user with a value: known ones occur in training personas, held-out ones never do
LEXICON = {
    ("length", "brief"): _entry(
        "busy hurried terse | hasty rushed", "short answers, few words | brief replies, quick notes"
    ),
    ("length", "detailed"): _entry(
        "thorough meticulous curious | diligent studious",
        "full detail, long answers | deep coverage, complete guides",
    ),
    ("format", "list"): _entry(
        "organized methodical orderly | tidy structured",
        "numbered lists, neat points | bullet outlines, itemized plans",
    ),
    ("format", "prose"): _entry(
        "literary bookish eloquent | poetic lyrical",
        "flowing text, whole sentences | smooth prose, running paragraphs",
    ),
    ("tone", "casual"): _entry(
        "relaxed friendly playful | breezy chummy", "casual talk, easy banter | loose chatter, warm slang"
    ),
    ("tone", "formal"): _entry(
        "polite dignified proper | stately refined",
        "formal language, respectful words | noble speech, elegant address",
    ),
    ("cost", "frugal"): _entry(
        "thrifty frugal economical | stingy penniless",
        "low prices, cheap options | tight budgets, bargain deals",
    ),
    ("cost", "premium"): _entry(
        "wealthy lavish posh | opulent affluent", "premium goods, costly brands | luxury items, fancy makes"
    ),
    ("company", "group"): _entry(
        "social outgoing sociable | gregarious neighborly",
        "group work, shared effort | team spirit, joint projects",
    ),
    ("company", "solo"): _entry(
        "shy solitary private | reclusive withdrawn",
        "quiet solitude, working alone | lone effort, peaceful isolation",
    ),
}

NAMES = _words("Mara Otto Lina Igor Nora Paul Vera Hugo")
STORY_FRAMES = (
    "{{name}} is {adjective} and likes {phrase}.",
    "{{name}} seems {adjective} and enjoys {phrase}.",
    "We are {adjective} people and love {phrase}.",
)
# frames of personas as users write them: seen in stories, never in a training persona
HELD_OUT_FRAMES = (
    "Someone {adjective} who wants {phrase}.",
    "As a rather {adjective} person, I look for {phrase}.",
    "My friends call me {adjective}, so give me {phrase}.",
)

# question forms; {task} is "clean my old kettle today"
PLAIN_TEMPLATES = (
    "How do people {task}?",
    "Explain how to {task}.",
    "Steps to {task}, please.",
)
EXPERIMENT_TEMPLATES = (
    "How do I {task}?",
    "What is the best way to {task}?",
    "Please help me {task}.",
    "I want to {task}, what now?",
    "Can you tell me how to {task}?",
)
MODIFIERS = (
    "",
    "today",
    "this weekend",
    "before winter",
    "after the holidays",
    "for a gift",
    "on my own terms",
    "this year",
)


def all_words() -> str:
    """Return a text that holds every word of the world at least once, with and without a space before it."""
    texts = [" ".join(nouns) for nouns in NOUNS.values()]
    texts += [*VERBS.values(), *VARIANTS, *MODIFIERS, *NAMES, *STORY_FRAMES, *HELD_OUT_FRAMES]
    texts += [word for words in FILLERS.values() for word in words]
    texts += [
        sentence for sentences in [*OPENERS.values(), *CONTENT_SENTENCES.values()] for sentence in sentences
    ]
    texts += [
        word
        for entry in LEXICON.values()
        for kind in entry.values()
        for words in kind.values()
        for word in words
    ]
    texts += [*PLAIN_TEMPLATES, *EXPERIMENT_TEMPLATES, *FACT_PHRASES.values()]
    return " " + " ".join(texts)
