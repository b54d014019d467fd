"""A user's own preference data (``--data FILE``): read, validated and split, with an account of every row.

Given splits are kept. Otherwise pairs are split 80/10/10, by user where there are users enough, else by
prompt, near prompts together; texts alone decide, not a seed or the order of rows.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_lib.data import mapping as maps
from persona_lib.data.mapping import Mapping, RowError, lookup, plain
from persona_lib.data.rows import KINDS, OUTCOMES, Finding, OwnRow, read_rows, source_key
from persona_lib.records import HISTORY, PAIR_FIELDS, PAIR_SPLITS, DataError, PreferencePair
from persona_lib.settings import ConfigError, Profile, results_dir
from persona_lib.store import VERSIONS, content_hash, file_hash
from persona_lib.texts import near_duplicates, near_groups, normal

NAME = "own"  # the data set's name in profiles and results
READ = 2  # raised when the same file gives other pairs or splits
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TEST_USERS = 0.25, 5, 0.45  # share of the users of two pairs or more; but so many; but at most this share
LEAST_USERS = 4  # of two pairs or more, without which splits are by prompt
# Different prompts of each split: train is split in four, and a shuffled persona is that of another test row.
LEAST_OF = {"train": 10, "validation": 1, "test": 2}
BROKEN_TEXT = {
    "lost characters": re.compile("[\ufffd\ud800-\udfff]"),
    "control character": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
}
ODD = {code: re.compile(pattern) for code, pattern in maps.FORMATS["odd"].items()}
SECRET = ("e-mail", "phone", "key")  # findings that show the beginning alone


# --- one row becomes a pair, or says why it is none ---


def check_text(column: str, value: Any) -> None:
    """Raise RowError for a value that is unusable by itself."""
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


def sides_of(values: dict[str, Any], mapping: Mapping) -> list[tuple[str, Any]]:
    """Return column and value of the best and the worst response, the last of these; RowError for a tie.

    Of more than two labelled responses: the one that the label names, and the next one, in a circle.
    """
    sides, column, numbers = [(name, lookup(values, name)) for name in mapping.sides], mapping.label, [1, 0]
    label = plain(lookup(values, column))
    if mapping.ranking:
        column, paths = mapping.ranking, (mapping.answer, mapping.rank or mapping.score)
        items = sides[0][1] if isinstance(sides[0][1], (list, tuple)) else ()
        found = [[lookup(item, path) for path in paths] for item in items]
        if len(found) < 2 or any(maps.MISSING in one for one in found):
            said = f"it needs two answers or more, each with {' and '.join(paths)}"
            raise RowError(column, "ranking", said)
        sides, numbers = [(column, text) for text, _ in found], [number for _, number in found]
    elif mapping.scores:
        column, numbers = mapping.scores[0], [lookup(values, name) for name in mapping.scores]
    elif len(sides) > 2:
        named = [n for n, (name, _) in enumerate(sides) if label and name.lower().endswith(label)]
        if len(named) != 1:
            raise RowError(column, "label", f"{label!r}"[:60])
        sides = (sides * 2)[named[0] : named[0] + 2]
    elif mapping.label:
        sides = (sides * 2)[:2]  # an unpaired thumb has one response, which is liked or not
        numbers = [label in mapping.first, label in mapping.second]
        if not any(numbers):
            raise RowError(column, "tie" if label in mapping.tie else "label", f"{label!r}"[:60])
    try:
        orders = [-float(number) if mapping.rank else float(number) for number in numbers]
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(column, "label", f"{numbers} are no numbers"[:60]) from error
    best, *_, worst = sorted(range(len(orders)), key=lambda n: -orders[n])
    apart, against = orders[best] - orders[worst], best and mapping.scores and not mapping.responses
    if not apart > 0 or apart < mapping.margin or against:
        raise RowError(column, "tie", f"{numbers}"[:60])
    return [sides[best], sides[worst]]


def texts_of(row: OwnRow, mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong."""
    values, prompt = row.value, lookup(row.value, mapping.prompt[0])
    if len(mapping.prompt) > 1:  # those that hold text below each other
        prompt = "\n\n".join(filter(None, (optional(row, column) for column in mapping.prompt)))
    for column in mapping.needed:
        if lookup(values, column) is maps.MISSING:
            raise RowError(column, "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    (good, chosen), (bad, rejected) = sides_of(values, mapping)
    columns = dict(zip(PAIR_FIELDS, (" + ".join(mapping.prompt), good, bad), strict=True))
    try:
        found = maps.conversation_texts(None if prompt is maps.MISSING else prompt, chosen, rejected)
    except RowError as error:
        field, *said = error.args
        raise RowError(columns.get(field, field), *said) from error
    texts = dict(zip(PAIR_FIELDS, found, strict=True))
    for field, text in texts.items():
        check_text(columns[field], text)
    if texts["chosen"].strip() == texts["rejected"].strip() and not mapping.response:
        raise RowError(bad, "identical")
    return texts


def optional(row: OwnRow, column: str) -> str:
    """Return what a column holds as text, "" without it."""
    value = lookup(row.value, column) if column else None
    if value is maps.MISSING or value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def read_pair(row: OwnRow, mapping: Mapping, salt: bytes = b"") -> OwnRow:
    """Return a row with its pair and split, its user hashed if there is a ``salt``; RowError says why not."""
    if not isinstance(row.value, dict):
        raise RowError("row", "unreadable", str(row.value)[:200])
    given = optional(row, mapping.split)
    split = mapping.splits.get(plain(given), "") if given else ""
    if given and not split:
        raise RowError(mapping.split, "split", given)
    texts = texts_of(row, mapping)
    if mapping.response:  # an unpaired thumb has one side only: `join_thumbs` joins it with another
        liked = plain(lookup(row.value, mapping.label)) in mapping.first
        texts["rejected" if liked else "chosen"] = ""
    for name in ("persona_chosen", "persona_rejected"):
        texts[name] = optional(row, getattr(mapping, name))
    user = optional(row, mapping.user)
    if mapping.user and not user:
        raise RowError(mapping.user, "user")
    if user and salt:
        user = hashlib.blake2b(user.encode("utf-8", "replace"), key=salt, digest_size=6).hexdigest()
    pair = PreferencePair(optional(row, mapping.id) or f"{NAME}-{row.row:06d}", user=user, **texts)
    return replace(row, value=None, pair=pair, split=split, reason=optional(row, mapping.reason))


def join_thumbs(halves: Sequence[OwnRow]) -> tuple[list[OwnRow], list[Finding]]:
    """Join each liked response with a disliked one to the same prompt, by the same user where users are."""
    groups: dict[tuple[str, ...], tuple[list[OwnRow], list[OwnRow]]] = defaultdict(lambda: ([], []))
    for half in halves:
        groups[normal(half.pair.prompt), half.pair.user, half.split][not half.pair.chosen].append(half)
    pairs, findings = [], []
    for liked, disliked in groups.values():
        for one, other in itertools.zip_longest(liked, disliked):
            if not (one and other):
                findings.append((one or other).found("row", "unpaired"))
            elif one.pair.chosen.strip() == other.pair.rejected.strip():
                findings += [half.found("row", "identical") for half in (one, other)]
            else:
                pairs.append(replace(one, pair=replace(one.pair, rejected=other.pair.rejected)))
                findings.append(other.found("row", "joined", f"with {one.place}"))
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
    """Leave out pairs that occur before, repeat an id, or have a prompt of an earlier given split."""
    owners: dict[str, str] = {}
    for split in reversed(PAIR_SPLITS):
        owners |= {normal(p.pair.prompt): split for p in pairs if p.split == split}
    ids: dict[str, str] = {}
    texts: dict[tuple[str, ...], str] = {}
    kept, findings = [], []
    for p in pairs:
        prompt, sides = normal(p.pair.prompt), (p.pair.chosen.strip(), p.pair.rejected.strip())
        asked = (p.pair.user, prompt)  # two users may choose alike: that is no duplicate
        if (*asked, *sides) in texts:
            findings.append(p.found("row", "duplicate", f"as {texts[*asked, *sides]}"))
        elif p.split and owners[prompt] != p.split:
            findings.append(p.found("prompt", "shared prompt", f"of {owners[prompt]}"))
        elif p.pair.id in ids:
            findings.append(p.found("id", "id", f"{p.pair.id} in {ids[p.pair.id]}"))
        else:
            if (*asked, *reversed(sides)) in texts:
                findings.append(p.found("row", "opposite", f"of {texts[*asked, *reversed(sides)]}"))
            ids[p.pair.id] = texts[*asked, *sides] = p.place
            kept.append(p)
    return kept, findings


# --- splits: by prompt, or by user and prompt at once; near prompts stay together ---


def near_parts(rows: Iterable[OwnRow], threshold: float) -> list[list[OwnRow]]:
    """Return the rows of each group of near prompts, the groups in an order that only texts decide."""
    same: dict[str, list[OwnRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.row):
        same[normal(row.pair.prompt)].append(row)
    groups: dict[int, list[OwnRow]] = defaultdict(list)
    for group, part in zip(near_groups(list(same), threshold), same.values(), strict=True):
        groups[group] += part
    return sorted(groups.values(), key=lambda part: content_hash(normal(part[0].pair.prompt)))


def fill_shares(groups: Iterable[list[Any]], shares: dict[str, float]) -> dict[str, list[Any]]:
    """Give each whole group, in turn, to the part that is furthest below its share."""
    parts: dict[str, list[Any]] = {name: [] for name in shares}
    for group in groups:
        parts[min(shares, key=lambda name: (len(parts[name]) + 1) / shares[name])] += group
    return parts


def fill_splits(rows: Iterable[OwnRow], shares: dict[str, float], threshold: float) -> list[OwnRow]:
    """Give rows a split by their shares: whole groups of near prompts."""
    parts = fill_shares(near_parts(rows, threshold), shares)
    return [replace(row, split=name) for name, part in parts.items() for row in part]


def assign_splits(rows: Sequence[OwnRow], threshold: float, split_by: str = "") -> tuple[list[OwnRow], str]:
    """Return the rows with their splits, and in words how they were split.

    More than one given split: they are kept (`complete_splits`). Otherwise by user where there are users
    enough, unless ``split_by`` is "prompt"; equal prompts alone stay together where groups of near ones would
    take up a whole split. Otherwise by prompt.
    """
    if len({row.split for row in rows}) > 1:
        return complete_splits(rows, threshold)
    unseen = set() if split_by == "prompt" else unseen_users(rows)
    for near, said in ((threshold, ""), (1.0, ", only equal prompts together")):
        made = hold_out(rows, unseen, near) if unseen else []
        if any(row.split == HISTORY for row in made) and not short_splits(made):
            return made, f"by user and by prompt{said}"
    if split_by == "user":
        raise DataError(f"split_by: user needs {LEAST_USERS} users of two pairs or more; use prompt")
    return fill_splits(rows, SHARES, threshold), "by prompt, near duplicates together"


def complete_splits(rows: Sequence[OwnRow], threshold: float) -> tuple[list[OwnRow], str]:
    """Keep given splits; take a missing one from train, and history from test users who are nowhere else."""
    missing = [name for name in ("validation", "test") if all(row.split != name for row in rows)]
    if missing:
        shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
        parted = fill_splits((row for row in rows if row.split == "train"), shares, threshold)
        rows = [row for row in rows if row.split != "train"] + parted
    counts = Counter(row.pair.user for row in rows)
    known = {row.pair.user for row in rows if row.split != "test"}
    unseen = {user for user, n in counts.items() if user and n > 1} - known
    halves = hold_out([row for row in rows if row.pair.user in unseen], unseen, threshold)
    rows = [row for row in rows if row.pair.user not in unseen] + halves
    return rows, "as given" + (f", {' and '.join(missing)} taken from train" if missing else "")


def between_splits(rows: Sequence[OwnRow], threshold: float) -> Iterator[Finding]:
    """Note rows of given splits whose prompt nearly repeats one of train, and test rows of its users."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split in ("validation", "test")]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    for index, of, jaccard in found:
        yield others[index].found("prompt", "near duplicate", f"of {train[of].place}, Jaccard {jaccard:.2f}")
    known = {row.pair.user for row in train} - {""}
    of_known = (row for row in others if row.split == "test" and row.pair.user in known)
    yield from (row.found("user", "user in two splits") for row in of_known)


def unseen_users(rows: Sequence[OwnRow]) -> set[str]:
    """Return the users who are held out (`TEST_USERS`), by their texts alone; none with too few users."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.pair.user].append(normal(row.pair.prompt) + row.pair.chosen)
    keys = {user: content_hash(sorted(own)) for user, own in texts.items() if user and len(own) > 1}
    if len(keys) < LEAST_USERS:
        return set()
    share, least, most = TEST_USERS
    n_unseen = min(max(least, round(share * len(keys))), int(most * len(keys)))
    return set(sorted(keys, key=lambda user: keys[user])[:n_unseen])


def hold_out(rows: Sequence[OwnRow], unseen: Container[str], threshold: float) -> list[OwnRow]:
    """Give whole groups of near prompts to the splits: no test user and no test question is trained on.

    A group with pairs of test users is held out or not, by turns. Held out, it is evaluated, also its pairs
    of users in training (at most twice the test share of their pairs). Otherwise the test users' pairs are
    `HISTORY`, of which only the user's persona is made. Other groups fill up `SHARES`.
    """
    n_others = sum(row.pair.user not in unseen for row in rows)
    sizes, made = dict.fromkeys(SHARES, 0), []
    lead: Counter[str | None] = Counter()
    for group in near_parts(rows, threshold):
        theirs = [row.pair.user for row in group if row.pair.user in unseen]
        n, free = len(group) - len(theirs), list(SHARES)
        if theirs:  # history first: ``lead`` is by how many pairs a user has more of it
            held = sizes["test"] + n <= 2 * SHARES["test"] * n_others and sum(lead[u] for u in {*theirs}) > 0
            free = ["test"] if held else ["train", "validation"]
            for user in theirs:
                lead[user] += -1 if held else 1
        due = min(free, key=lambda name: (sizes[name] + n) / SHARES[name])
        sizes[due] += n
        for row in group:
            evaluated = due == "test" or row.pair.user not in unseen
            made.append(replace(row, split=due if evaluated else HISTORY))
    return made


def short_splits(rows: Sequence[OwnRow]) -> dict[str, int]:
    """Return the splits with fewer different prompts than `LEAST_OF`, and how many they have."""
    prompts = {split: {normal(r.pair.prompt) for r in rows if r.split == split} for split in PAIR_SPLITS}
    return {split: len(found) for split, found in prompts.items() if len(found) < LEAST_OF[split]}


def check_splits(source: str, rows: Sequence[OwnRow], findings: Sequence[Finding], threshold: float) -> None:
    """Raise DataError if a split has too few different prompts; says what became of the rows."""
    if not (short := short_splits(rows)):
        return
    needs = [f"{split} has {n} different prompts and needs {LEAST_OF[split]}" for split, n in short.items()]
    rejected, way_out = [f for f in findings if f.outcome == "rejected"], OUTCOMES["rejected"]
    said = counted(f"{f.code} ({f.field})" for f in rejected) or "none"
    first = [f"; first: {f.place}, {f.field}: {f.code} {f.detail} ({way_out[f.code][1]})" for f in rejected]
    largest = max(map(len, near_parts(rows, threshold)), default=0)
    parts = f". The largest group of near prompts has {largest} rows: data.near_duplicates=0.9 parts more"
    if len({normal(row.pair.prompt) for row in rows}) < (least := sum(LEAST_OF.values())):
        parts = f". Splits keep equal prompts together: give {least} different prompts or more"
    raise DataError(
        f"{source}: {len(rows)} usable pairs; {', '.join(needs)}. Rows rejected: {said}{''.join(first[:1])}"
        f"{parts if rows else ''}"
    )


# --- all rows ---


@dataclass(frozen=True)
class OwnData:
    """What was read: usable pairs by split, every finding, how many rows there were, how they were read."""

    source: str
    n_read: int
    rows: tuple[OwnRow, ...]
    findings: tuple[Finding, ...]
    splits: str  # in words how they were made
    how: tuple[str, ...] = ()  # encoding and separator, the recognised format, columns that are not used

    def pairs(self) -> dict[str, list[PreferencePair]]:
        """Return the pairs by split."""
        names = (*PAIR_SPLITS, HISTORY) if any(row.split == HISTORY for row in self.rows) else PAIR_SPLITS
        return {split: [row.pair for row in self.rows if row.split == split] for split in names}


def own_key(profile: Profile) -> str:
    """Return a hash of all that the pairs are made from."""
    mapping, source = Path(profile.data.mapping).expanduser(), source_key(profile.data.path)
    lines = file_hash(mapping) if mapping.is_file() else ""
    return content_hash(VERSIONS["pairs"], READ, source, lines, profile.data.near_duplicates)


def read_own(profile: Profile) -> OwnData:
    """Read, validate and split the data that ``data.path`` and ``data.mapping`` of a profile name.

    ConfigError: its judge cannot read own data. DataError: no such file or column, too few usable prompts.
    Every other fault is a `Finding` of its row.
    """
    if profile.evaluation.judge == "oracle":
        raise ConfigError(
            f"profile {profile.name}: evaluation.judge=oracle reads the package's own pairs only; leave "
            "--profile out (profile own), or give --set evaluation.judge=none, or lm with a judge.model"
        )
    if not profile.data.path:
        raise DataError(f"no data: say where it is, --data FILE. Read are {KINDS}")
    return read_source(profile, own_key(profile))


@functools.lru_cache(maxsize=2)
def read_source(profile: Profile, key: str) -> OwnData:
    """Read data for `read_own`; ``key`` is a hash of what it is read from: a changed file is read again."""
    source, threshold = profile.data.path, profile.data.near_duplicates
    given = maps.read_mapping(profile.data.mapping)
    raw, read = read_rows(source, given.config, given.encoding)
    mapping, shape = maps.find_mapping(profile, given, raw)
    if mapping.margin and not (mapping.scores or mapping.ranking):
        raise DataError(f"{source}: margin is the least difference of scores or ranks: the mapping has none")
    salt = user_salt(profile) if mapping.user and not mapping.show_users else b""
    pairs, findings = [], []
    for row in raw:
        try:
            pairs.append(read_pair(row, mapping, salt))
        except RowError as error:
            findings.append(row.found(*error.args))
    if any(pair.split for pair in pairs):  # then a row without a split is for training
        pairs = [replace(pair, split=pair.split or "train") for pair in pairs]
    if mapping.response:
        pairs, unpaired = join_thumbs(pairs)
        findings += unpaired
    pairs, more = against_others(pairs)
    findings += more + [odd for pair in pairs for odd in odd_texts(pair)]
    rows, splits = assign_splits(pairs, threshold, mapping.split_by)
    rows.sort(key=lambda row: row.row)
    check_splits(source, rows, findings, threshold)
    findings += between_splits(rows, threshold) if splits.startswith("as given") else []
    how = [read and f"file: {read}", shape and f"recognised as {shape}", maps.unused(raw, mapping)]
    findings.sort(key=lambda found: found.row)
    return OwnData(source, len(raw), tuple(rows), tuple(findings), splits, tuple(filter(None, how)))


# --- what is said about them ---


def account(data: OwnData) -> dict[str, int]:
    """Count the rows read, and what adds up to them: usable, joined to these, rejected by reason."""
    reasons = Counter(finding.code for finding in data.findings if finding.outcome != "kept")
    return {"read": data.n_read, "usable": len(data.rows)} | reasons


def found_by_kind(data: OwnData) -> list[dict[str, Any]]:
    """Return every finding by kind."""
    return [
        {"title": f"{outcome.replace('kept', 'kept, but')}: {words}", "mend": mend, "found": lines,
         "rows": len({f.row for f in lines})}
        for outcome, codes in OUTCOMES.items()
        for code, (words, mend) in codes.items()
        if (lines := [f for f in data.findings if f.code == code])
    ]  # fmt: skip


def describe(data: OwnData) -> list[str]:
    """Say in a few lines what was read, what was left out and why, and how it was split."""
    codes = {outcome: [f.code for f in data.findings if f.outcome == outcome] for outcome in OUTCOMES}
    pairs = f" pairs (of {len(data.rows) + len(codes['joined'])} rows)" if codes["joined"] else ""
    sizes = {split: len(part) for split, part in data.pairs().items()}
    name = Path(data.source).name if Path(data.source).expanduser().exists() else data.source
    reasons = f" ({counted(codes['rejected'])})" if codes["rejected"] else ""
    read = f"{name}: {data.n_read} rows read, {len(data.rows)} usable{pairs}"
    return [
        f"{read}, {len(codes['rejected'])} rejected{reasons}",
        f"splits {data.splits}: {', '.join(f'{split} {n}' for split, n in sizes.items())}",
        *describe_users(data),
        *([f"noted: {counted(codes['kept'])}"] if codes["kept"] else []),
        *data.how,
    ]


def describe_users(data: OwnData) -> list[str]:
    """Say how many users there are, who of them is evaluated, and what the split by user cost."""
    users = {split: Counter(pair.user for pair in part) for split, part in data.pairs().items()}
    if not (everybody := set().union(*users.values()) - {""}):
        return []
    history, test = users.get(HISTORY, Counter()), users["test"].items()
    seen, unseen = ([n for user, n in test if user in part] for part in (users["train"], history))
    said = (
        f"users: {len(everybody)}; evaluated: {sum(unseen)} pairs of {len(unseen)} users who are not in "
        f"training (unseen), {sum(seen)} pairs of {len(seen)} who are (seen)"
    )
    cost = f"cost of the split by user: {history.total()} pairs of unseen users serve for their persona only"
    return [said, f"{cost}; no question is in two of train, validation and test"] if history else [said]


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
