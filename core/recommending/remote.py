"""What to ask hubs for, and what they offer as entries that can be scored. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ..catalog import detect_lora_name, family
from ..catalog.digest import generic_tags
from ..catalog.entries import LoraEntry, LoraLibrary
from ..catalog.merging import Said, merge
from ..catalog.text import tag_key
from ..hubs.entries import MinedSettings, RemoteVersion
from ..plan import FileRef, LoraPlan, PromptAnalysis, RemoteLora
from .text import STOPWORDS, words

MAX_QUESTIONS = 6
"""Clauses that hubs are asked about, at most, in the order of the prompt."""
MAX_WORDS = 6
"""Words of one clause that are sent out, at most."""
_MAX_CHARACTERS = 60  # of them: what is written without blanks is one word here

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SAYS_NOTHING = ("quality", "technical")
"""Categories of concepts that no LoRA is searched for."""


class Question(NamedTuple):
    """One clause of the prompt that nothing on disk serves."""

    clause: str
    words: tuple[str, ...]
    """Those that are sent out: as typed, in lower case, without function words."""


class Offer(NamedTuple):
    """A LoRA that a hub has and this machine has not."""

    version: RemoteVersion
    file: FileRef
    """Where it would be."""
    remote: RemoteLora
    mined: MinedSettings | None = None

    @property
    def entry(self) -> LoraEntry:
        """As the catalog would know it without having seen its tensors."""
        stem = PurePosixPath(self.file.name).stem
        entry = LoraEntry(
            file=self.file,
            title=" ".join(re.split(r"[\s_\-+]+", stem)),
            family=self.version.family,
            variant=detect_lora_name(self.file.name) or detect_lora_name(self.version.name),
            family_confidence=0.5,
            evidence=f"the hub says {family(self.version.family).name}",
        )
        return merge(entry, Said(versions=(self.version,), mined=self.mined))


def questions(analysis: PromptAnalysis, plan: LoraPlan) -> tuple[Question, ...]:
    """The clauses that no LoRA of the plan serves and that a LoRA could serve, each once.

    Left out are clauses of general praise and technical terms, which half of all LoRAs claim.
    """
    served = {clause for lora in plan.loras for clause in lora.serves}
    idle = {
        word
        for concept in analysis.concepts
        if concept.category in _SAYS_NOTHING
        for word in words(concept.text)
    }
    found: dict[tuple[str, ...], Question] = {}
    for clause in analysis.clauses:
        said = [word.lower() for word in _WORD.findall(clause.text)]
        telling = [word for word in said if not set(words(word)) <= STOPWORDS]
        general = (
            tag_key(clause.text) in generic_tags()
            or {stem for word in telling for stem in words(word)} <= idle
        )
        if clause.text in served or clause.weight <= 0 or not telling or general:
            continue
        asked = tuple(" ".join(telling[:MAX_WORDS])[:_MAX_CHARACTERS].split())
        found.setdefault(asked, Question(clause.text, asked))
    return tuple(found.values())


def with_offers(
    library: LoraLibrary, offers: Sequence[Offer]
) -> tuple[LoraLibrary, Mapping[FileRef, RemoteLora]]:
    """The library with the offers behind its own entries, and where to get those."""
    entries = [offer.entry for offer in offers]
    return (
        library._replace(
            entries=(*library.entries, *entries),
            revision=f"{library.revision}+{hash(tuple(entries)):x}",
        ),
        {offer.file: offer.remote for offer in offers},
    )
