"""Which columns of a user's own file mean what: the mapping that ``--mapping FILE`` names.

A mapping is a few lines of YAML; every line is optional, and without a file the columns are called prompt,
chosen and rejected. Either the file says which response won (``chosen``, ``rejected``), or it has two
responses and a label (``responses``, ``label``, ``first``, ``second``, ``tie``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib.profiles import near_names
from persona_lib.records import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean.

    ``responses`` are two columns whose ``label`` says which one won: a value listed in ``first``,
    ``second`` or ``tie`` (compared as text, without case). ``splits`` maps names of given splits to
    train, validation and test; names that it leaves out are not read. ``config`` is a configuration of a
    data set on the hub. Columns in ``named`` were written in the file, so they have to be there.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: tuple[str, ...] = ()
    label: str = ""
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    id: str = "id"
    category: str = "category"
    split: str = "split"
    splits: tuple[tuple[str, str], ...] = ()
    config: str = ""
    named: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have to be there."""
        texts = (*self.responses, self.label) if self.responses else (self.chosen, self.rejected)
        extra = [getattr(self, name) for name in ("id", "category", "split") if name in self.named]
        return (self.prompt, *texts, *extra)


FIELDS = tuple(field.name for field in dataclasses.fields(Mapping) if field.name != "named")
LISTS = ("responses", "first", "second", "tie")


def plain(value: Any) -> str:
    """Return a label, a split's name or an id as text, so that 0, 0.0 and "0 " are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def read_mapping(path: str) -> Mapping:
    """Read a mapping file; "" gives the default one. Raises DataError that names the file and the line."""
    if not path:
        return Mapping()
    content = load_yaml(Path(path).expanduser())
    for name in content:
        if name not in FIELDS:
            raise DataError(f"{path}: unknown field {name!r}; {near_names(str(name), list(FIELDS))}")
    values = {name: field_value(path, name, value) for name, value in content.items()}
    mapping = Mapping(**values, named=frozenset(values))
    check_labels(path, mapping)
    return mapping


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a file of "field: column" lines."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mapping file (paths are relative to the repository)") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: should be lines of 'field: column', for example 'prompt: question'")
    return content


def field_value(path: str, name: str, value: Any) -> Any:
    """Return one field of a mapping file in its type."""
    if name == "splits":
        if not isinstance(value, dict) or not set(value.values()) <= set(SPLITS):
            raise DataError(f"{path}: splits={value!r}: write 'name in the data: train, validation or test'")
        return tuple((plain(given), ours) for given, ours in value.items())
    if name in LISTS:
        values = value if isinstance(value, list) else [value]
        return tuple(map(str, values) if name == "responses" else map(plain, values))
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {name}={value!r} should be the name of a column")
    return value


def check_labels(path: str, mapping: Mapping) -> None:
    """Check that a labelled mapping is complete and says one thing about every label."""
    if not mapping.responses:
        if given := mapping.named & {"label", "first", "second", "tie"}:
            raise DataError(f"{path}: {sorted(given)[0]} is given, but not responses: [column, column]")
        return
    if len(mapping.responses) != 2:
        raise DataError(f"{path}: responses={list(mapping.responses)} should be two columns")
    if given := mapping.named & {"chosen", "rejected"}:
        raise DataError(f"{path}: {sorted(given)[0]} does not go with responses and label: use either")
    for name in ("label", "first", "second"):
        if not getattr(mapping, name):
            raise DataError(f"{path}: responses need {name}: a label's column, and its values for each side")
    values = [*mapping.first, *mapping.second, *mapping.tie]
    if twice := {value for value in values if values.count(value) > 1}:
        raise DataError(f"{path}: the label {sorted(twice)[0]!r} stands for two outcomes")
