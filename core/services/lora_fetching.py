"""The LoRAs of a plan brought to this machine and applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from .. import host
from ..errors import HubError
from ..fetching import LoraReference, Wanted, describe
from ..generating import apply_loras
from ..hubs import parse_reference
from ..hubs.wording import describe_remote
from ..memory import describe_model
from ..plan import FileRef, LoraPlan, PlannedLora
from ..recommending import Offer, UserLora, default_strength, once_each, with_user_loras
from .data import Data
from .files import Files
from .hubs import Hubs
from .loras import Loras


class FetchedLoras(NamedTuple):
    """What CivitAILoRAFetcher gives."""

    plan: LoraPlan
    model: Any
    clip: Any
    report: str


class LoraFetching:
    """What CivitAILoRAFetcher does."""

    def __init__(self, data: Data, files: Files, hubs: Hubs, loras: Loras) -> None:
        self._data = data
        self._files = files
        self._hubs = hubs
        self._loras = loras

    def fetch_loras(
        self,
        plan: LoraPlan | None,
        stack: Sequence[tuple[str, float, float]],
        model: Any,
        clip: Any,
        references: Sequence[LoraReference] = (),
        *,
        allow_download: bool = False,
        mode: Literal["AUTO", "ASSISTED"] = "AUTO",
        approved: LoraPlan | None = None,
    ) -> FetchedLoras:
        """The plan with every file found on disk, applied to MODEL and CLIP where given.

        The LoRAs of `references` come last. What is missing is downloaded where that is allowed.
        One without a strength that plan or stack have already keeps its strength there.

        Args:
            mode: ASSISTED leaves what is missing pending until there is an approved plan.
            approved: takes the place of plan, stack and references.
        """
        waits = mode == "ASSISTED" and approved is None
        if approved is not None:
            plan, stack, references = approved, (), ()
        if plan is None:
            family = "unknown" if model is None else describe_model(model).family
            plan = LoraPlan(family=family, segments=())
        plan = with_user_loras(plan, once_each(self._loras.stack_loras(stack)))
        plan, named, downloaded = self._present(
            plan, references, allow_download=allow_download, waits=waits
        )
        there = {lora.file.name for lora in plan.loras}
        added = [
            lora
            for lora, wanted in zip(named, references, strict=True)
            if wanted.strength is not None or lora.entry.file.name not in there
        ]
        plan = with_user_loras(plan, once_each(added))
        located = plan.model_copy(
            update={
                "loras": tuple(
                    lora
                    if lora.pending
                    else lora.model_copy(update={"file": self._files.locate(lora.file)})
                    for lora in plan.loras
                )
            }
        )
        lines = [f"Downloaded {describe(item)}." for item in downloaded]
        lines += [_place_of(lora) for lora in located.loras]
        lines += [
            f"{lora.entry.title} reacts to: {', '.join(w.text for w in lora.entry.trigger_words)}."
            for lora in added
            if lora.entry.trigger_words
        ]
        if located.pending:
            lines.append(
                "Nothing was downloaded. Read what it is, then put the LoRA plan as JSON, edited "
                "or not, into plan, turn allow_download on, and run again."
            )
        elif model is not None or clip is not None:
            outcome = apply_loras(model, clip, located.loras, locate=self._files.locate, add=True)
            self._files.used("loras", [lora.file for lora in outcome.applied])
            model, clip = outcome.model, outcome.clip
            lines += [f"Left out: {item.name}: {item.reason}" for item in outcome.skipped]
            lines += [notice.message for notice in outcome.notices]
        return FetchedLoras(located, model, clip, "\n".join(lines) or "No LoRA in the plan.")

    def _present(
        self,
        plan: LoraPlan,
        references: Sequence[LoraReference],
        *,
        allow_download: bool,
        waits: bool,
    ) -> tuple[LoraPlan, list[UserLora], list[Wanted]]:
        """The plan with its pending LoRAs fetched, those of the references, and what was
        downloaded. When it `waits`, what is missing is pending instead."""
        pending = plan.pending
        asked = [parse_reference(lora.remote.reference) for lora in pending if lora.remote]
        wanted = [*asked, *(lora.reference for lora in references)]
        if not wanted:
            return plan, [], []
        settled = self._hubs.fetcher.settle(wanted, "lora", stop=host.check_interrupt)
        for lora, (item, *_) in zip(pending, settled, strict=False):
            _as_planned(lora, item)
        if not waits:
            fetched = self._hubs.fetcher.bring(
                settled,
                allow=allow_download,
                on_share=host.progress(),
                on_text=host.show_text,
                stop=host.check_interrupt,
            )
            settled = [one.files for one in fetched]
            downloaded = [item for one in fetched for item in one.downloaded]
        else:
            downloaded = []
        now = dict(zip(pending, (items[0] for items in settled), strict=False))
        loras = [
            lora.model_copy(update={"file": now[lora], "pending": False})
            if isinstance(now.get(lora), FileRef)
            else lora
            for lora in plan.loras
        ]
        named = self._referenced_loras(references, settled[len(pending) :])
        return plan.model_copy(update={"loras": tuple(loras)}), named, downloaded

    def _referenced_loras(
        self,
        references: Sequence[LoraReference],
        settled: Sequence[Sequence[FileRef | Wanted]],
    ) -> list[UserLora]:
        loras = []
        for lora, (item, *_) in zip(references, settled, strict=True):  # only a model has several
            if isinstance(item, Wanted):
                entry, remote = Offer(item.version, item.ref, item.remote).entry, item.remote
            else:
                entry, remote = self._data.catalog.lora_by_name(item.name), None
            authors = entry.recommended_weight or 0.0
            # As with recommended ones, 0 and below gives no direction.
            own = authors if authors > 0 else default_strength(len(references))
            strength = own if lora.strength is None else lora.strength
            loras.append(UserLora(entry, strength, strength, "reference", remote))
        return loras


def _as_planned(lora: PlannedLora, item: FileRef | Wanted) -> None:
    """Raises HubError when a hub has other content now than the plan was made with."""
    now = item.file.sha256 if isinstance(item, Wanted) else item.sha256
    if None not in (now, lora.file.sha256) and now != lora.file.sha256:
        raise HubError(
            f"LoRA {lora.title} is another file on the hub now than when the plan was made "
            f"({lora.remote.reference if lora.remote else ''}). Make the plan again."
        )


def _place_of(lora: PlannedLora) -> str:
    if lora.pending and lora.remote is not None:
        where = f"not on this machine: {describe_remote(lora.remote)}"
    else:
        where = "on disk"
    return f"{lora.title} at {lora.model_strength:g}: {where}."
