"""Which LoRAs a prompt takes: those of the user, those on disk, those that the hubs offer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .. import host
from ..catalog import Edit, LoraLibrary, lora_fit, made_edit
from ..errors import LoraError
from ..hubs import SafetyRules
from ..learning import rated_loras
from ..memory import info_of
from ..plan import FileRef, LoraPlan, ModelInfo, PromptAnalysis, RemoteLora
from ..proposing import Proposer
from ..recommending import (
    LoraSupport,
    Meaning,
    RecommendSettings,
    UserLora,
    history_of,
    meaning_notice,
    once_each,
    questions,
    recommend,
    with_offers,
)
from .data import Data
from .hubs import Hubs
from .prompts import Prompts

DEFAULT_SETTINGS = RecommendSettings()
NO_REMOTE: Mapping[FileRef, RemoteLora] = {}
NO_LIBRARY = LoraLibrary((), (), "none")


class Loras:
    """Recommends LoRAs, and keeps what the user says of them. Safe to use from several threads."""

    def __init__(self, data: Data, hubs: Hubs, prompts: Prompts) -> None:
        self._data = data
        self._hubs = hubs
        self._prompts = prompts
        self._lock = threading.RLock()
        self._meaning: Meaning | None = None
        self._proposer: Proposer | None = None
        self._unanswered = 0

    def recommend(
        self,
        analysis: PromptAnalysis,
        model: Any,
        *,
        settings: RecommendSettings = DEFAULT_SETTINGS,
        stack: Sequence[tuple[str, float, float]] = (),
        include_remote: bool = False,
    ) -> LoraPlan:
        """The LoRA plan for a prompt and a model (ModelInfo or MODEL).

        Args:
            include_remote: ask the hubs for what no LoRA on disk serves; such LoRAs are pending
                in the plan.
        """
        library = self._data.catalog.loras()
        info = info_of(model)
        family, checkpoint = info.family, PurePosixPath(info.checkpoint).stem
        users = self.user_loras(analysis, stack)
        history = history_of(rated_loras(self._data.database, family=family), analysis)

        def planned(
            library: LoraLibrary, remote: Mapping[FileRef, RemoteLora] = NO_REMOTE
        ) -> LoraPlan:
            similarity = None
            if settings.max_loras > len(users):
                similarity = self.meaning.similarity(
                    library,
                    analysis.clauses,
                    checkpoint,
                    check=host.check_interrupt,
                )
            return recommend(
                analysis,
                library,
                family=family,
                fit=lora_fit,
                checkpoint=checkpoint,
                settings=settings,
                user_loras=users,
                remote=remote,
                similarity=similarity,
                history=history,
            )

        plan = planned(library)
        if settings.max_loras > len(users) and (notice := meaning_notice(self.meaning.status())):
            plan = plan.model_copy(update={"notices": (*plan.notices, notice)})
        asked = questions(analysis, plan) if include_remote and family != "unknown" else ()
        if not asked or len(plan.loras) >= settings.max_loras:
            return plan
        offers = self.proposer.ask(
            asked,
            family=family,
            rules=SafetyRules(settings.allow_nsfw, settings.blocked_tags),
            stop=host.check_interrupt,
        )
        if not offers.complete:
            self._unanswered += 1
        if found := offers.found:
            # Scored among themselves first: details cost a request each.
            alone, remote = with_offers(NO_LIBRARY, found)
            first = planned(alone, remote=remote)
            found = self.proposer.look_up(found, first, stop=host.check_interrupt)
            library, remote = with_offers(library, found)
            plan = planned(library, remote=remote)
        return plan.model_copy(update={"notices": (*plan.notices, *offers.notices)})

    def lora_support(self, analysis: PromptAnalysis | None, family: str) -> LoraSupport:
        """How well the LoRAs on disk serve a prompt with models of a family, whichever it is."""
        if analysis is None:
            return LoraSupport()
        info = ModelInfo(name="", family=family, family_confidence=1.0, evidence="")
        try:
            loras = [lora for lora in self.recommend(analysis, info).loras if not lora.by_user]
        except LoraError as error:
            return LoraSupport(problem=str(error))
        return LoraSupport(
            tuple(lora.confidence for lora in loras), tuple(lora.title for lora in loras)
        )

    def user_loras(
        self, analysis: PromptAnalysis, stack: Sequence[tuple[str, float, float]]
    ) -> list[UserLora]:
        """The LoRAs that the user names in the prompt and in a stack.

        Raises:
            LoraError: one is not on disk, or is named at two strengths.
        """
        tags = [
            UserLora(
                entry=self._data.catalog.lora_by_name(tag.name),
                model_strength=tag.model_strength,
                clip_strength=tag.clip_strength,
                origin="prompt_tag",
            )
            for tag in analysis.lora_tags
        ]
        return once_each([*tags, *self.stack_loras(stack)])

    def stack_loras(self, stack: Sequence[tuple[str, float, float]]) -> list[UserLora]:
        """The LoRAs of a LORA_STACK. Raises LoraError: one is not on disk."""
        return [
            UserLora(
                entry=self._data.catalog.lora_by_name(name),
                model_strength=model_strength,
                clip_strength=clip_strength,
                origin="stack",
            )
            for name, model_strength, clip_strength in stack
            if name not in ("", "None")  # how stack nodes of other packs write an empty slot
        ]

    def lora_edit(self, name: str) -> Edit:
        """What the user says of a LoRA. Raises ModelFileError: there is no such file."""
        return self._data.catalog.edit_of(FileRef(folder="loras", name=name))

    def edit_lora(self, name: str, trigger_words: Any, weight: Any) -> Edit:
        """Keep what the user says of a LoRA; None leaves a field to the other sources.

        Raises:
            ModelFileError: there is no such file.
            SettingError: the trigger words are no texts, or the weight is no strength.
        """
        edit = made_edit(trigger_words, weight)
        self._data.catalog.edit(FileRef(folder="loras", name=name), edit)
        return edit

    # ------------------------------------------------------------------ meaning and hubs

    @property
    def meaning(self) -> Meaning:
        """Compares prompts with LoRAs by meaning, where the embedding model is on this machine."""
        with self._lock:
            if self._meaning is None:
                vectors = host.user_directory() / "lora_vectors.bin"
                self._meaning = Meaning(vectors, self._prompts.opened_encoder)
            return self._meaning

    def read_meaning(self) -> None:
        """Make the vectors that LoRAs on disk lack, in the background."""
        self.meaning.start(self._data.catalog.loras())

    @property
    def proposer(self) -> Proposer:
        """Asks the hubs for LoRAs."""
        with self._lock:
            if self._proposer is None:
                self._proposer = Proposer(self._hubs.fetcher, self._data.catalog)
            return self._proposer

    # ------------------------------------------------------------------ revisions

    def lora_revision(self) -> str:
        """Changes when a LoRA file is added, removed or modified."""
        return self._data.catalog.revision("loras")

    def meaning_revision(self) -> str:
        """Changes when vectors are done that a recommendation did not wait for."""
        return self.meaning.revision()

    def remote_revision(self) -> str:
        """Changes when a hub did not answer the recommender, so that it asks again."""
        return str(self._unanswered)
