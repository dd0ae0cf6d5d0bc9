"""What an update puts in the place of shipped files, while they are loaded.

A file is a shipped one by its name: ``bounce-rules.toml`` as the last of the files of bounce rules,
``providers.toml`` beside the file of MX rules that includes it. Whatever has another name is the operator's own, and
no update is ever read in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mta.failure.qualify import BounceRule
from mta.model.errors import BadInput
from mta.settings.bounce_rules import parse_bounce_rules, read_texts
from mta.settings.rules_file import load_bundle, parse_bundle
from mta.traffic.rules import RuleSet

BOUNCE_RULES: Final = "bounce-rules.toml"
PROVIDERS: Final = "providers.toml"
NAMES: Final = frozenset({BOUNCE_RULES, PROVIDERS})


def load_updated_bounce_rules(
    files: Sequence[Path], update: Mapping[str, str], origin: str = "update"
) -> tuple[BounceRule, ...]:
    """As ``load_bounce_rules``, with the text of an update in the place of the shipped file, which is not read then.

    ``origin``: what errors call the update. Raises BadInput with file, line and key.
    """
    texts: dict[str, str] = {}
    for file in files:
        if file == files[-1] and file.name == BOUNCE_RULES and BOUNCE_RULES in update:
            texts[f"{origin}/{BOUNCE_RULES}"] = update[BOUNCE_RULES]
        else:
            texts |= read_texts([file])
    return parse_bounce_rules(texts)


def load_usable_bounce_rules(
    files: Sequence[Path], update: Mapping[str, str], origin: str
) -> tuple[tuple[BounceRule, ...], BadInput | None]:
    """The same for who must go on: without the update where that cannot be used, with the reason why.

    Raises BadInput for what is wrong with a file.
    """
    try:
        return load_updated_bounce_rules(files, update, origin), None
    except BadInput as error:
        if not error.where.startswith(f"{origin}/"):
            raise
        return load_updated_bounce_rules(files, {}), error


def is_updated(texts: Mapping[str, str], update: Mapping[str, str]) -> bool:
    """Whether a set of MX rules (texts by name) is another one with the update."""
    return PROVIDERS in texts and texts[PROVIDERS] != update.get(PROVIDERS, texts[PROVIDERS])


def parse_updated_rules(
    root: str, texts: Mapping[str, str], update: Mapping[str, str], origin: str = "update"
) -> RuleSet:
    """As ``parse_bundle``, with the text of an update in the place of the shipped file. Raises BadInput."""
    if not is_updated(texts, update):
        return parse_bundle(root, texts)
    try:
        return parse_bundle(root, {**texts, PROVIDERS: update[PROVIDERS]})
    except BadInput as error:
        is_in_it = error.where.partition(":")[0] == PROVIDERS
        raise BadInput(f"{origin}/{error.where}" if is_in_it else error.where, error.what) from None


def load_updated_rules(file: Path, update: Mapping[str, str], origin: str = "update") -> RuleSet:
    """As ``load_rules``, the same way."""
    rules, texts = load_bundle(file)
    return parse_updated_rules(file.name, texts, update, origin) if is_updated(texts, update) else rules
