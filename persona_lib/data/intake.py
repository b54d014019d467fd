"""A user's own preference data (``--data FILE``): read, validated and split, with an account of every row.

Rows of a file, a folder or a hub id become pairs; what is wrong with a row is a `Finding` with a code of
REJECTED (the row is left out) or NOTED (it is kept). Given splits are kept. Otherwise pairs are split
80/10/10 by prompt, near prompts together; texts alone decide, not a seed or the order of rows.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.data.mapping import (
    FORMATS,
    MISSING,
    OURS,
    Mapping,
    RowError,
    conversation_texts,
    find_mapping,
    is_conversation,
    lookup,
    plain,
    read_mapping,
    user_column,
)
from persona_lib.data.retrieval import normal
from persona_lib.data.rows import KINDS, REJECTED, Finding, OwnRow, read_rows, source_key
from persona_lib.records import HISTORY, PAIR_FIELDS, PAIR_SPLITS, DataError, PreferencePair
from persona_lib.settings import ConfigError, Profile, results_dir
from persona_lib.store import VERSIONS, content_hash, file_hash
from persona_lib.texts import near_duplicates
from persona_lib.texts import near_groups as groups_of

if TYPE_CHECKING:
    import pandas as pd

NAME = "own"  # the data set's name in profiles and results
READ = 2  # raised when the same file gives other pairs or splits
SPLIT_NAMES = OURS | dict.fromkeys(("dev", "val", "valid", "eval"), "validation")
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TEST_USERS = 0.25, 5, 0.45  # share of the users of two pairs or more; but so many; but at most this share
LEAST_USERS = 4  # of two pairs or more, without which splits are by prompt
# Different prompts of each split: train is split in four, and a shuffled persona is that of another test row.
LEAST_OF = {"train": 10, "validation": 1, "test": 2}
LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on
BROKEN_TEXT = {
    "lost characters": re.compile("[\ufffd\ud800-\udfff]"),
    "control character": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
}
ODD = {code: re.compile(pattern) for code, pattern in FORMATS["odd"].items()}
SECRET = ("e-mail", "phone", "key")  # findings that show the beginning alone


# --- one row becomes a pair, or says why it is none ---

Side = tuple[str, Any]  # a response's column and value


def check_text(column: str, value: Any) -> None:
    """Raise RowError for a value that is unusable by itself."""
    if value is None:
        raise RowError(column, "null")
    if not isinstance(value, str):
        raise RowError(column, "not text", f"{type(value).__name__}: {str(value)[:60]}")
    if not value.strip():
        raise RowError(column, "empty")
    for code, pattern in BROKEN_TEXT.items():
        if match := pattern.search(value):
            raise RowError(column, code, excerpt(match))


def excerpt(match: re.Match[str]) -> str:
    """Return what stands around a match, escaped so that what cannot be printed is seen."""
    return ascii(match.string[max(0, match.start() - 15) : match.end() + 15])


def number_of(column: str, value: Any) -> float:
    """Return a score or rank; RowError for a value that is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise RowError(column, "label", f"{value!r} is no number"[:60])
    return number


def is_first(values: dict[str, Any], mapping: Mapping) -> bool:
    """Say whether a row's label is one of ``first``; RowError for a tie or an unknown label."""
    label = plain(lookup(values, mapping.label))
    if label not in (*mapping.first, *mapping.second):
        raise RowError(mapping.label, "tie" if label in mapping.tie else "label", f"{label!r}"[:60])
    return label in mapping.first


def ranked(values: dict[str, Any], mapping: Mapping) -> tuple[list[Any], list[float]]:
    """Return the answers of a ranking, and numbers of which the highest is best."""
    answers, order = lookup(values, mapping.ranking), mapping.rank or mapping.score
    found = [[lookup(one, path) for path in (mapping.answer, order)] for one in answers or ()]
    if len(found) < 2 or any(MISSING in one for one in found):
        said = f"it needs two answers or more, each with {mapping.answer} and {order}"
        raise RowError(mapping.ranking, "ranking", said)
    sign = -1 if mapping.rank else 1
    return [text for text, _ in found], [sign * number_of(order, number) for _, number in found]


def sides_of(values: dict[str, Any], mapping: Mapping) -> tuple[Side, Side]:
    """Return the best and the worst response, the later of equally bad ones; RowError for a tie."""
    sides = [(column, lookup(values, column)) for column in (mapping.sides * 2)[:2]]
    orders, decided = [1.0, 0.0], mapping.label
    if mapping.ranking:
        texts, orders = ranked(values, mapping)
        sides, decided = [(mapping.ranking, text) for text in texts], mapping.rank or mapping.score
    elif mapping.scores:
        decided = mapping.scores[0]
        orders = [number_of(column, lookup(values, column)) for column in mapping.scores]
    elif mapping.responses and not is_first(values, mapping):
        orders = [0.0, 1.0]
    places = range(len(orders))
    best, worst = max(places, key=lambda n: (orders[n], -n)), max(places, key=lambda n: (-orders[n], n))
    apart = orders[best] - orders[worst]
    if apart == 0 or apart < mapping.margin or (best and mapping.scores and not mapping.responses):
        raise RowError(decided, "tie", f"{orders}"[:60])
    return sides[best], sides[worst]


def prompt_of(values: dict[str, Any], mapping: Mapping) -> Any:
    """Return a row's prompt: of several columns, those that hold text below each other."""
    given = [lookup(values, column) for column in mapping.prompt]
    if len(given) == 1 or all(value is MISSING for value in given):
        return given[0]
    given = [value for value in given if value is not MISSING]
    if other := [value for value in given if not isinstance(value, (str, type(None)))]:
        raise RowError(" + ".join(mapping.prompt), "not text", f"{type(other[0]).__name__}"[:60])
    return "\n\n".join(text.strip() for text in given if text and text.strip())


def texts_of(values: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong."""
    prompt = prompt_of(values, mapping)
    lost = [column for column in mapping.needed if lookup(values, column) is MISSING]
    if not lost and prompt is MISSING:
        inside = all(is_conversation(lookup(values, side)) for side in mapping.sides)
        lost = [] if inside and "prompt" not in mapping.named else list(mapping.prompt)
    if lost:
        raise RowError(lost[0], "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    (good, chosen), (bad, rejected) = sides_of(values, mapping)
    columns = dict(zip(PAIR_FIELDS, (" + ".join(mapping.prompt), good, bad), strict=True))
    try:
        found = conversation_texts(None if prompt is MISSING else prompt, chosen, rejected)
    except RowError as error:
        field, *said = error.args
        raise RowError(columns[field], *said) from error
    texts = dict(zip(PAIR_FIELDS, found, strict=True))
    for field, text in texts.items():
        check_text(columns[field], text)
    if texts["chosen"].strip() == texts["rejected"].strip() and not mapping.response:
        raise RowError(bad, "identical")
    return texts


def split_of(row: OwnRow, mapping: Mapping) -> str:
    """Return the given split of a row, "" without one; RowError for one that is not known or not read."""
    given = row.split
    if (own := lookup(row.value, mapping.split)) is not MISSING and (mapping.split != "split" or not given):
        given = own
    if given in ("", None):
        return ""
    known = dict(mapping.splits) or SPLIT_NAMES
    if plain(given) not in known:
        raise RowError(mapping.split, "other split" if mapping.splits else "split", str(given))
    return known[plain(given)]


def optional(row: OwnRow, column: str) -> str:
    """Return what a column holds as text, "" without it."""
    value = lookup(row.value, column) if column else None
    if value is MISSING or value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def read_pair(row: OwnRow, mapping: Mapping, salt: bytes = b"") -> OwnRow:
    """Return a row with its pair, split and category; RowError says why it makes none.

    An unpaired thumb has one side only (`join_thumbs`). Without a ``salt`` users are shown as they are.
    """
    if not isinstance(row.value, dict):
        raise RowError("row", "unreadable", str(row.value))
    split, texts = split_of(row, mapping), texts_of(row.value, mapping)
    if mapping.response:
        texts["rejected" if is_first(row.value, mapping) else "chosen"] = ""
    for name in ("persona_chosen", "persona_rejected"):
        texts[name] = optional(row, getattr(mapping, name))
        if texts[name]:
            check_text(getattr(mapping, name), texts[name])
    user = optional(row, mapping.user)
    if mapping.user and not user:
        raise RowError(mapping.user, "user")
    if user and salt:
        user = hashlib.blake2b(user.encode("utf-8", "replace"), key=salt, digest_size=6).hexdigest()
    pair = PreferencePair(optional(row, mapping.id) or f"{NAME}-{row.row:06d}", user=user, **texts)
    return replace(row, value=None, pair=pair, split=split, category=optional(row, mapping.category))


def join_thumbs(halves: Sequence[OwnRow], mapping: Mapping) -> tuple[list[OwnRow], list[Finding]]:
    """Join each liked response with a disliked one to the same prompt, by the same user where users are."""
    groups: dict[tuple[str, ...], tuple[list[OwnRow], list[OwnRow]]] = defaultdict(lambda: ([], []))
    for half in halves:
        groups[normal(half.pair.prompt), half.pair.user, half.split][not half.pair.chosen].append(half)
    pairs, findings = [], []
    for liked, disliked in groups.values():
        for one, other in zip(liked, disliked, strict=False):
            if one.pair.chosen.strip() == other.pair.rejected.strip():
                findings += [half.found(mapping.response, "identical") for half in (one, other)]
                continue
            pairs.append(replace(one, pair=replace(one.pair, rejected=other.pair.rejected)))
            findings.append(other.found("row", "joined", f"with {one.place}"))
        rest = [*liked[len(disliked) :], *disliked[len(liked) :]]
        findings += [half.found("row", "unpaired") for half in rest]
    return sorted(pairs, key=lambda pair: pair.row), findings


def user_salt(profile: Profile) -> bytes:
    """Return the salt of a profile's user ids: a file in its results folder, made once, for its owner."""
    path = results_dir(profile) / "user_salt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def odd_texts(own: OwnRow) -> Iterator[Finding]:
    """Yield what a reader should know about the texts of a row that is kept."""
    for field, (code, pattern) in itertools.product(PAIR_FIELDS, ODD.items()):
        if match := pattern.search(getattr(own.pair, field)):
            yield own.found(field, code, f"{match[0][:4]}..." if code in SECRET else excerpt(match))


def against_others(pairs: Sequence[OwnRow]) -> tuple[list[OwnRow], list[Finding]]:
    """Leave out pairs that occur before, repeat an id, or have a prompt of another given split.

    A prompt that is given in several splits stays in the first of train, validation, test.
    """
    owners = {}
    for split in reversed(PAIR_SPLITS):
        owners |= {normal(p.pair.prompt): split for p in pairs if p.split == split}
    ids: dict[str, str] = {}
    texts: dict[tuple[str, ...], str] = {}
    kept, findings = [], []
    for p in pairs:
        prompt, sides = normal(p.pair.prompt), (p.pair.chosen.strip(), p.pair.rejected.strip())
        asked = (p.pair.user, prompt)  # two users may choose alike: that is no duplicate
        if (*asked, *sides) in texts:
            findings.append(p.found("row", "duplicate", texts[*asked, *sides]))
        elif p.split and owners[prompt] != p.split:
            findings.append(p.found("prompt", "shared prompt", f"of {owners[prompt]}"))
        elif p.pair.id in ids:
            findings.append(p.found("id", "id", f"{p.pair.id} in {ids[p.pair.id]}"))
        else:
            if (*asked, *reversed(sides)) in texts:
                findings.append(p.found("row", "opposite", texts[*asked, *reversed(sides)]))
            ids[p.pair.id] = texts[*asked, *sides] = p.place
            kept.append(p)
    return kept, findings


# --- splits: by prompt, or by user and prompt at once; near prompts stay together ---


def near_groups(prompts: Sequence[str], threshold: float) -> list[int]:
    """Return the group of each prompt: near duplicates (`texts.near_groups`) and equal prompts share one."""
    names = list(map(normal, prompts))
    different = list(dict.fromkeys(names))
    groups = dict(zip(different, groups_of(different, threshold), strict=True))
    return [groups[name] for name in names]


def fill_shares(groups: Iterable[list[Any]], shares: dict[str, float]) -> dict[str, list[Any]]:
    """Give each whole group, in turn, to the part that is furthest below its share."""
    parts: dict[str, list[Any]] = {name: [] for name in shares}
    for group in groups:
        parts[min(shares, key=lambda name: (len(parts[name]) + 1) / shares[name])] += group
    return parts


def near_parts(rows: Sequence[OwnRow], threshold: float) -> list[list[int]]:
    """Return the places of the rows of each group of near prompts, in an order that only texts decide."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    return sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))


def fill_splits(rows: Sequence[OwnRow], shares: dict[str, float], threshold: float) -> list[OwnRow]:
    """Give rows a split by their shares: whole groups of near prompts."""
    parts = fill_shares(near_parts(rows, threshold), shares)
    splits = {index: name for name, part in parts.items() for index in part}
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnRow], threshold: float, split_by: str = "") -> tuple[list[OwnRow], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay, but of test users who are in no other split every second pair becomes `HISTORY`. A
    missing split is taken from train, a tenth of the rows each; where only one is given, it is all the data
    there is, and is split as if none were: by user where there are users enough (`split_users`), unless
    ``split_by`` is "prompt".
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        by_user = split_users(rows, threshold) if split_by != "prompt" else None
        if by_user is None and split_by == "user":
            raise DataError(f"split_by: user needs {LEAST_USERS} users of two pairs or more; use prompt")
        return by_user or fill_splits(rows, SHARES, threshold), False
    rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    moved = iter(fill_splits([row for row in rows if row.split == "train"], shares, threshold))
    rows = [next(moved) if row.split == "train" else row for row in rows]
    counts = Counter(row.pair.user for row in rows)
    known = {row.pair.user for row in rows if row.split != "test"}
    unseen = {user for user, n in counts.items() if user and n > 1} - known
    halves = iter(hold_out([row for row in rows if row.pair.user in unseen], unseen, threshold))
    return [next(halves) if row.pair.user in unseen else row for row in rows], True


def split_users(rows: Sequence[OwnRow], threshold: float) -> list[OwnRow] | None:
    """Split by user and by question at once; None with too few users, or where that leaves a split empty.

    `TEST_USERS` of the users of two pairs or more, in an order that only texts decide, are test users; the
    others are in training. Groups of near prompts stay whole, too: see `hold_out`.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.pair.user].append(normal(row.pair.prompt) + row.pair.chosen)
    keys = {user: content_hash(sorted(own)) for user, own in texts.items() if user and len(own) > 1}
    if len(keys) < LEAST_USERS:
        return None
    share, least, most = TEST_USERS
    n_unseen = min(max(least, round(share * len(keys))), int(most * len(keys)))
    unseen = set(sorted(keys, key=lambda user: keys[user])[:n_unseen])
    for near in (threshold, 1.0):  # 1: where near prompts are all one group, equal prompts alone
        made = hold_out(rows, unseen, near)
        if HISTORY in {row.split for row in made} and not short_splits(made):
            return made
    return None


def hold_out(rows: Sequence[OwnRow], unseen: Container[str], threshold: float) -> list[OwnRow]:
    """Give whole groups of near prompts to the splits: no test user and no test question is trained on.

    A group with pairs of test users is held out or not, by turns. Held out, it is evaluated, also its pairs
    of other users, who are *seen* in training (at most twice the test share of their pairs). Otherwise the
    test users' pairs are `HISTORY`, of which only the user's persona is made. Other groups fill up `SHARES`.
    """
    n_others = sum(row.pair.user not in unseen for row in rows)
    sizes, lead, splits = dict.fromkeys(SHARES, 0), Counter(), {}
    for group in near_parts(rows, threshold):
        theirs = [rows[i].pair.user for i in group if rows[i].pair.user in unseen]
        n, free = len(group) - len(theirs), list(SHARES)
        if theirs:  # history first: ``lead`` is by how many pairs a user has more of it
            held = sizes["test"] + n <= 2 * SHARES["test"] * n_others and sum(lead[u] for u in {*theirs}) > 0
            free = ["test"] if held else ["train", "validation"]
            for user in theirs:
                lead[user] += -1 if held else 1
        due = min(free, key=lambda name: (sizes[name] + n) / SHARES[name])
        sizes[due] += n
        for i in group:
            splits[i] = due if due == "test" or rows[i].pair.user not in unseen else HISTORY
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def between_splits(rows: Sequence[OwnRow], threshold: float) -> Iterator[Finding]:
    """Note rows of given splits whose prompt nearly repeats one of train, and test rows of its users."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split in ("validation", "test")]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    for index, of, jaccard in found:
        detail = f"of {train[of].place}, Jaccard {jaccard:.2f}"
        yield others[index].found("prompt", "near duplicate", detail)
    known = {row.pair.user for row in train} - {""}
    for row in others:
        if row.split == "test" and row.pair.user in known:
            yield row.found("user", "user in two splits")


def short_splits(rows: Sequence[OwnRow]) -> dict[str, int]:
    """Return the splits with fewer different prompts than `LEAST_OF`, and how many they have."""
    prompts = {split: {normal(r.pair.prompt) for r in rows if r.split == split} for split in PAIR_SPLITS}
    return {split: len(found) for split, found in prompts.items() if len(found) < LEAST_OF[split]}


def check_splits(source: str, rows: Sequence[OwnRow], threshold: float) -> None:
    """Raise DataError if a split has too few different prompts to be trained, validated or tested on."""
    if not (short := short_splits(rows)):
        return
    said = ", ".join(
        f"{split} has {n} different prompts and needs {LEAST_OF[split]}" for split, n in short.items()
    )
    largest = Counter(near_groups([row.pair.prompt for row in rows], threshold)).most_common(1)[0][1]
    raise DataError(
        f"{source}: {said}. The largest group of near prompts, which stay together, has {largest} of "
        f"{len(rows)} rows. Add pairs, or keep fewer together: --set data.near_duplicates=0.9"
    )


# --- all rows ---


@dataclass(frozen=True)
class OwnData:
    """What was read: usable pairs by split, every finding, how many rows there were.

    ``how`` names encoding and separator, ``shape`` the format that was recognised, with its mapping;
    ``user_column`` is a column that the mapping does not use and that may name users.
    """

    source: str
    n_read: int
    rows: tuple[OwnRow, ...]
    findings: tuple[Finding, ...]
    given_splits: bool
    how: str = ""
    shape: str = ""
    user_column: str = ""

    @property
    def rejected(self) -> dict[int, Finding]:
        """Return the first reason against each row that was left out, by row number."""
        found = {finding.row: finding for finding in reversed(self.findings) if finding.rejected}
        return dict(sorted(found.items()))

    def pairs(self) -> dict[str, list[PreferencePair]]:
        """Return the pairs by split."""
        names = (*PAIR_SPLITS, HISTORY) if any(row.split == HISTORY for row in self.rows) else PAIR_SPLITS
        return {split: [row.pair for row in self.rows if row.split == split] for split in names}


def check_judge(profile: Profile) -> None:
    """Raise ConfigError for a profile whose judge cannot read own data."""
    if profile.evaluation.judge == "oracle":
        raise ConfigError(
            f"profile {profile.name}: evaluation.judge=oracle reads the package's own pairs only; leave "
            "--profile out (profile own), or give --set evaluation.judge=none, or lm with a judge.model"
        )


def own_key(profile: Profile) -> str:
    """Return a hash of all that the pairs are made from."""
    mapping, source = Path(profile.data.mapping).expanduser(), source_key(profile.data.path)
    lines = file_hash(mapping) if mapping.is_file() else ""
    return content_hash(VERSIONS["pairs"], READ, source, lines, profile.data.near_duplicates)


def read_own(profile: Profile) -> OwnData:
    """Read, validate and split the data that ``data.path`` and ``data.mapping`` of a profile name.

    Raises DataError for what concerns the whole data: no such file, a column that is not there, no usable
    row, too few prompts. Every other fault is a `Finding` of its row.
    """
    if not profile.data.path:
        raise DataError(f"no data: say where it is, --data FILE. Read are {KINDS}")
    return read_source(profile, own_key(profile))


@functools.lru_cache(maxsize=2)
def read_source(profile: Profile, key: str) -> OwnData:
    """Read data for `read_own`; ``key`` is a hash of what it is read from: a changed file is read again."""
    source, threshold = profile.data.path, profile.data.near_duplicates
    given = read_mapping(profile.data.mapping)
    raw, how = read_rows(source, given.config, given.encoding)
    mapping, shape = find_mapping(profile, given, raw)
    salt = user_salt(profile) if mapping.user and not mapping.show_users else b""
    pairs, findings = [], []
    for row in raw:
        try:
            pairs.append(read_pair(row, mapping, salt))
        except RowError as error:
            findings.append(row.found(*error.args))
    if mapping.response:
        pairs, unpaired = join_thumbs(pairs, mapping)
        findings += unpaired
    pairs, more = against_others(pairs)
    findings += more + [odd for pair in pairs for odd in odd_texts(pair)]
    check_enough(source, pairs, findings)
    rows, split = assign_splits(pairs, threshold, mapping.split_by)
    check_splits(source, rows, threshold)
    findings += between_splits(rows, threshold) if split else []
    findings.sort(key=lambda found: found.row)
    return OwnData(
        source, len(raw), tuple(rows), tuple(findings), split, how, shape, user_column(raw, mapping)
    )


def check_enough(source: str, pairs: Sequence[OwnRow], findings: Sequence[Finding]) -> None:
    """Raise DataError if there are too few prompts to train and to test on; says what became of the rows."""
    prompts = len({normal(pair.pair.prompt) for pair in pairs})
    if prompts < LEAST_PROMPTS:
        rejected = [finding for finding in findings if finding.rejected]
        said = counted(f"{f.code} ({f.field})" for f in rejected) or "none"
        first = "".join(f"; first: {f.place}, {f.field}: {f.code} {f.detail}".rstrip() for f in rejected[:1])
        ways = "".join(f". {code}: {REJECTED[code][1]}" for code in dict.fromkeys(f.code for f in rejected))
        raise DataError(
            f"{source}: {len(pairs)} usable pairs with {prompts} different prompts; at least {LEAST_PROMPTS} "
            f"prompts are needed. Rows rejected: {said}{first}{ways}"
        )


# --- what is said about them ---


def finding_table(data: OwnData) -> pd.DataFrame:
    """Return a line per finding: row, place, field, code, whether the row was rejected, detail."""
    import pandas as pd

    first = data.rejected
    lines = [asdict(f) | {"outcome": "rejected" if f.row in first else "kept"} for f in data.findings]
    return pd.DataFrame(lines, columns=["row", "place", "field", "code", "outcome", "detail"])


def account(data: OwnData) -> dict[str, int]:
    """Return the account of the rows: read, usable, rejected by reason; all but the first add up to it."""
    reasons = Counter(finding.code for finding in data.rejected.values())
    return {"read": data.n_read, "usable": len(data.rows)} | reasons


def describe(data: OwnData) -> list[str]:
    """Say in a few lines what was read, what was left out and why, and how it was split."""
    reasons = counted(finding.code for finding in data.rejected.values())
    noted = counted(finding.code for finding in data.findings if not finding.rejected)
    sizes = {split: len(part) for split, part in data.pairs().items()}
    how = "as given" if data.given_splits else "by prompt, near duplicates together"
    how = "by user and by prompt" if HISTORY in sizes and not data.given_splits else how
    name = Path(data.source).name if Path(data.source).expanduser().exists() else data.source
    read = f"{name}: {data.n_read} rows read, {len(data.rows)} usable, {len(data.rejected)} rejected"
    lines = [
        read + (f" ({reasons})" if reasons else ""),
        f"splits {how}: {', '.join(f'{split} {n}' for split, n in sizes.items())}",
        *describe_users(data),
        data.how and f"read {data.how}",
        data.shape and f"recognised as {data.shape}",
        noted and f"noted: {noted}",
        data.user_column
        and f"column {data.user_column!r} may name users: a mapping file (--mapping FILE) with "
        f"the line 'user: {data.user_column}' gives each user a persona",
    ]
    return list(filter(None, lines))


def describe_users(data: OwnData) -> list[str]:
    """Say how many users there are, who of them is evaluated, and what the split by user cost."""
    users = {split: Counter(pair.user for pair in part) for split, part in data.pairs().items()}
    if not (everybody := set().union(*users.values()) - {""}):
        return []
    old = {user: n for user, n in users["test"].items() if user in users["train"]}
    seen, history = sum(old.values()), users.get(HISTORY, Counter()).total()
    said = [
        f"users: {len(everybody)}; evaluated: {users['test'].total() - seen} pairs of "
        f"{len(users['test']) - len(old)} users who are not in training (unseen), "
        f"{seen} pairs of {len(old)} who are (seen)"
    ]
    cost = f"cost of the split by user: {history} pairs of unseen users serve for their persona only"
    return [*said, f"{cost}; no question is in two of train, validation and test"] if history else said


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
