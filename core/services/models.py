"""Which model is used, and loading it into the memory there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import host
from ..catalog import ModelEntry
from ..errors import ModelFileError, ShortOfMemoryError, first_line
from ..hubs import Reference
from ..learning import rated_models, revision
from ..memory import (
    OWN_MEMORY,
    LoadedModel,
    ModelChoice,
    choose_fetched,
    choose_model,
    load_model,
    missing_parts,
    pool_report,
)
from ..memory.recovery import Setup, Spare, next_step
from ..plan import MemoryPlan, PromptAnalysis
from ..recommending import MemoryLimits, choose_checkpoint
from .data import Data
from .files import Files
from .hubs import Hubs
from .loras import Loras
from .memory import Memory, own_plan

log = logging.getLogger(__name__)


class Models:
    """Chooses, fetches and loads models. Safe to use from several threads."""

    def __init__(self, data: Data, files: Files, hubs: Hubs, memory: Memory, loras: Loras) -> None:
        self._data = data
        self._files = files
        self._hubs = hubs
        self._memory = memory
        self._loras = loras
        self._first_seen: dict[str, tuple[ModelChoice, str]] = {}

    def choose_model(self, **choice: Any) -> ModelChoice:
        """The model that is named, among those installed. Raises as `memory.choose_model` does."""
        return choose_model(**choice, installed=host.model_names)

    def choose_checkpoint(
        self,
        analysis: PromptAnalysis | None,
        plan: MemoryPlan | None = None,
        *,
        text_encoders: Sequence[str] = (),
        vae: str | None = None,
        variant: str | None = None,
    ) -> ModelChoice:
        """The installed checkpoint that suits a prompt, this machine, the LoRAs and the ratings.

        Raises:
            ModelFileError: there is none that can be used.
            LoraError: a LoRA that the user names in the prompt cannot be used with any.
        """
        library = self._data.catalog.models("checkpoints")
        if analysis is not None:
            self._loras.user_loras(analysis, ())  # one that is missing is no checkpoint's fault
        plan = plan or own_plan()
        given = {"text_encoder": bool(text_encoders), "vae": vae is not None}

        def problem(entry: ModelEntry) -> str:
            try:
                return missing_parts(self._data.catalog.path(entry.file), given)
            except ModelFileError as error:
                return str(error)

        chosen = choose_checkpoint(
            library.entries,
            analysis,
            loras=partial(self._loras.lora_support, analysis),
            memory=MemoryLimits(
                min(plan.device.total_bytes, plan.max_vram_bytes or plan.device.total_bytes),
                plan.ram_total_bytes,
                plan.device.kind in OWN_MEMORY,
            ),
            ratings=rated_models(self._data.database),
            unreadable=library.unreadable,
            problem=problem,
        )
        choice = choose_model(
            model=f"checkpoints/{chosen.file.name}",
            text_encoders=text_encoders,
            vae=vae,
            variant=variant,
            installed=host.model_names,
        )
        return choice._replace(chosen=chosen)

    def checkpoint_revision(self) -> str:
        """Changes when `choose_checkpoint` may choose otherwise for the same prompt."""
        parts = (self._data.catalog.revision("checkpoints"), self._loras.lora_revision())
        return " ".join((*parts, revision(self._data.database)))

    def fetch_model(
        self,
        references: Sequence[Reference],
        *,
        allow_download: bool,
        text_encoders: Sequence[str] = (),
        vae: str | None = None,
        variant: str | None = None,
    ) -> ModelChoice:
        """The files that references mean, downloaded where they are missing and that is allowed.

        Raises as `Fetcher.fetch` and `choose_fetched` do.
        """
        chosen = {"text_encoders": bool(text_encoders), "vae": bool(vae)}
        fetched = self._hubs.fetcher.fetch(
            references,
            "model",
            allow=allow_download,
            leave_out=frozenset(folder for folder, own in chosen.items() if own),
            on_share=host.progress(),
            on_text=host.show_text,
            stop=host.check_interrupt,
        )
        choice = choose_fetched(
            [file for one in fetched for file in one.files],
            text_encoders=text_encoders,
            vae=vae,
            variant=variant,
        )
        key = repr((references, text_encoders, vae, variant))
        self._first_seen.setdefault(key, (choice, self.stamp(choice)))
        return choice

    def fetched_stamp(
        self,
        references: Sequence[Reference],
        *,
        text_encoders: Sequence[str] = (),
        vae: str | None = None,
        variant: str | None = None,
    ) -> str:
        """Changes when a file that `fetch_model` gave in this process does. Asks no hub; empty
        as long as the files are as they were then, so that a download alone changes nothing."""
        key = repr((references, text_encoders, vae, variant))
        if key not in self._first_seen:
            return ""
        choice, before = self._first_seen[key]
        try:
            now = self.stamp(choice)
        except ModelFileError:
            return "gone"
        return "" if now == before else now

    def stamp(self, choice: ModelChoice) -> str:
        """Changes when one of the chosen files does."""
        files = [choice.model, *choice.text_encoders, *filter(None, [choice.vae])]
        return repr([host.file_stamp(file.folder, file.name) for file in files])

    def load_model(self, choice: ModelChoice, plan: MemoryPlan | None = None) -> LoadedModel:
        """Load the chosen model by the memory plan, the machine's own where None; its files are
        hashed in the background for the record.

        Raises as `memory.load_model` does, and ShortOfMemoryError.
        """
        plan = plan or own_plan()
        loaded = self.load(choice, plan)
        for file in loaded.info.files:
            self._files.hash_in_background(self._data.catalog.path(file))
        self._files.used("model", loaded.info.files)
        placed = self._memory.place(plan, loaded.model, loaded.clip, loaded.vae)
        return loaded._replace(
            **placed._asdict(), report=f"{loaded.report}\n{pool_report(self._memory.pool.state())}"
        )

    def load(self, choice: ModelChoice, plan: MemoryPlan) -> LoadedModel:
        """Load the chosen model by the memory plan; where that is out of memory, with less.

        Raises as `load_model` does.
        """
        free = self._memory.free_memory().ram
        short = self._ran_out_loading(choice, free) if plan.weight_dtype == "auto" else None
        setup, made_room = Setup(int8=short is not None), False
        while True:
            try:
                return load_model(
                    choice,
                    self._data.catalog,
                    plan,
                    pool=self._memory.pool,
                    kept_weights=self._memory.kept_weights,
                    free=self._memory.free_memory,
                    show=_show_allocation,
                    short=short,
                )
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                problem = first_line(error)
            # Not in the handler: the error's frames hold what could be loaded.
            room = self._memory.give_way() > 0 and not made_room
            spare = Spare(room=room, int8=plan.weight_dtype == "auto")
            step = next_step("load", setup, spare)
            log.warning("Intelligent Generation: out of memory while loading: %s", problem)
            if step is None:
                raise ShortOfMemoryError(
                    f"There is not enough memory to load {choice.model.name} ({problem}). Close "
                    "other programs, set weight_dtype to int8 in MemoryStrategy, or choose a "
                    "smaller model."
                )
            setup, made_room = step.setup, made_room or room
            if setup.int8:
                short = "loading it as it is ran out of memory"
                self._memory.remember_loading(choice.model, setup, free)

    def _ran_out_loading(self, choice: ModelChoice, free: int) -> str | None:
        found = self._memory.recall_loading(choice.model, free)
        if found is None:
            return None
        return f"loading it as it is ran out of memory on {found.at:%Y-%m-%d}"


def _show_allocation(text: str) -> None:
    log.info("Intelligent Generation loads:\n%s", text)
    host.show_text(text)
