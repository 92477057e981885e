"""Where the parts are put together: what each node does, in terms of the rooms.

One `Services` a process. The database and the catalog open at first use, never at ComfyUI's
start.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import host
from .catalog import (
    BackgroundScan,
    Catalog,
    CleanupPlan,
    CleanupReport,
    DiskCache,
    Edit,
    LoraLibrary,
    ModelEntry,
    ModelSearch,
    ScanStatus,
    SearchResult,
    accelerator,
    lora_fit,
)
from .catalog import Limits as CacheLimits
from .embedding import Encoder, Opened, model_folder, open_encoder
from .errors import (
    HubError,
    IntelligentGenerationError,
    LoraError,
    ModelFileError,
    PlanError,
    SettingError,
    ShortOfMemoryError,
    UnknownGenerationError,
)
from .fetching import (
    Fetcher,
    LoraReference,
    Wanted,
    describe,
    read_lora_references,
    read_references,
)
from .generating import (
    Progress,
    Sampled,
    SaveLocation,
    apply_loras,
    difference,
    edit_plan,
    explain,
    generation_from_png,
    load_generation,
    recent,
    recover,
    replay_prompt,
    run,
    save_generation,
)
from .hubs import (
    Credentials,
    Hub,
    HuggingFaceReference,
    Reference,
    SafetyRules,
    SearchQuery,
    parse_reference,
)
from .hubs.civitai import ENDPOINT as CIVITAI
from .hubs.huggingface import ENDPOINT as HUGGINGFACE
from .hubs.wording import describe_remote
from .learning import NOT_RATED, rated_loras, rated_models, rated_settings, record_rating, revision
from .memory import (
    OWN_MEMORY,
    FreeMemory,
    LoadedModel,
    ModelChoice,
    ModelPool,
    Placed,
    PoolState,
    choose_fetched,
    choose_model,
    describe_model,
    load_model,
    made_settings,
    missing_parts,
    place,
    plan_memory,
    pool_report,
    read_free,
    read_machine,
    read_resources,
    read_settings,
    report,
    report_resources,
    write_settings,
)
from .memory.recovery import Means, Setup, Step, cheaper_than, next_step
from .memory.remembered import LOADING, Fallback, forget, recall, remember
from .memory.residency import ModelKey, file_stamp
from .plan import (
    Concessions,
    FileRef,
    Generation,
    GenerationPlan,
    LoraPlan,
    MemoryPlan,
    ModelInfo,
    Notice,
    PlannedLora,
    PlanObject,
    PromptAnalysis,
    RemoteLora,
    RunCost,
    SamplingPlan,
    Timings,
)
from .prompting import OllamaSettings, analyze
from .prompting.answers import StoredAnswers
from .proposing import Proposer
from .recommending import (
    LoraSupport,
    Meaning,
    MeaningStatus,
    MemoryLimits,
    Offer,
    RecommendSettings,
    UserLora,
    choose_checkpoint,
    default_strength,
    history_of,
    questions,
    recommend,
    with_offers,
    with_user_loras,
    without_pending,
)
from .storage import Database
from .tuning import (
    NO_LIMITS,
    Costs,
    Limits,
    Measured,
    SamplingOverrides,
    Speed,
    Work,
    add_run,
    cost_revision,
    machine_speed,
    measured_runs,
    model_key,
    optimize,
    work_of,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DEFAULT_SETTINGS = RecommendSettings()
NO_OVERRIDES = SamplingOverrides()
NO_REMOTE: Mapping[FileRef, RemoteLora] = {}
NO_LIBRARY = LoraLibrary((), (), "none")

DATABASE_URL = "INTELLIGENT_GENERATION_DATABASE_URL"
"""Environment variable with any SQLAlchemy URL; default: SQLite in the protected user folder."""


HUB_SOURCES: dict[str, Hub] = {"Hugging Face": "huggingface", "CivitAI": "civitai"}
"""HubModelLoader's words for the hubs."""


class SamplerRequest(NamedTuple):
    """What IntelligentSampler was given."""

    model: Any
    clip: Any
    vae: Any
    mode: Any
    seed: int | None
    """None: draw one."""
    save: Any
    filename_prefix: str
    plan_text: str
    analysis: PromptAnalysis | None
    lora_plan: LoraPlan | None
    sampling_plan: SamplingPlan | None
    memory_plan: MemoryPlan | None
    workflow_prompt: Any
    """The API prompt being run, for the PNG."""
    extra_pnginfo: Any
    """ComfyUI's own metadata (the workflow), for the PNG; None from a bare API call."""


class SamplerResult(NamedTuple):
    """What IntelligentSampler gives."""

    image: torch.Tensor
    latent: dict[str, Any]
    generation: Generation


class FetchedLoras(NamedTuple):
    """What CivitAILoRAFetcher gives."""

    plan: LoraPlan
    model: Any
    clip: Any
    report: str


class Services:
    """The pack at work in one process. Safe to use from several threads."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._lock = threading.RLock()
        self._database: Database | None = None
        self._catalog: Catalog | None = None
        self._hashing: dict[Path, threading.Thread] = {}
        self._fetcher: Fetcher | None = None
        self._proposer: Proposer | None = None
        self._unanswered = 0
        self._in_use: dict[str, list[Path]] = {}
        self._search: ModelSearch | None = None
        self._scan: BackgroundScan | None = None
        self._meaning: Meaning | None = None
        self._cleanup: tuple[str, CleanupPlan] | None = None
        self._model_failures: Counter[str] = Counter()
        self._encoder: Opened | None = None
        self._encoder_lock = threading.Lock()
        self._first_seen: dict[str, tuple[ModelChoice, str]] = {}
        self._pool: ModelPool | None = None
        self._stock_keys: dict[str, ModelKey] = {}

    # ------------------------------------------------------------------ data

    @property
    def database(self) -> Database:
        """Opened, upgraded and recovered from crashes at first use. Raises StorageError."""
        with self._lock:
            if self._database is None:
                database = Database.open(self._database_url)
                recover(database, now=datetime.now(timezone.utc))
                self._database = database
            return self._database

    @property
    def catalog(self) -> Catalog:
        with self._lock:
            if self._catalog is None:
                self._catalog = Catalog(self.database, host.model_folders)
            return self._catalog

    @property
    def meaning(self) -> Meaning:
        """Compares prompts with LoRAs by meaning, where the embedding model is on this machine."""
        with self._lock:
            if self._meaning is None:
                vectors = host.user_directory() / "lora_vectors.bin"
                self._meaning = Meaning(vectors, self._opened_encoder)
            return self._meaning

    def read_meaning(self) -> None:
        """Make the vectors that LoRAs on disk lack, in the background."""
        self.meaning.start(self.catalog.loras())

    def meaning_revision(self) -> str:
        """Changes when vectors are done that a recommendation did not wait for."""
        return self.meaning.revision()

    def lora_revision(self) -> str:
        """Changes when a LoRA file is added, removed or modified."""
        return self.catalog.revision("loras")

    def remote_revision(self) -> str:
        """Changes when a hub did not answer the recommender, so that it asks again."""
        return str(self._unanswered)

    def learning_revision(self) -> str:
        """Changes when a rating is added or changed."""
        return revision(self.database)

    def cost_revision(self) -> str:
        """Changes when a run takes another time than was predicted for it."""
        return cost_revision(self.database)

    # ------------------------------------------------------------------ hubs

    @property
    def credentials(self) -> Credentials:
        """The hubs' tokens: of the environment, else in the protected user folder."""
        return Credentials(host.user_directory() / "credentials")

    @property
    def disk_cache(self) -> DiskCache:
        """The files that the pack downloaded."""
        return DiskCache(self.database, self.catalog, now=_utc_now)

    @property
    def fetcher(self) -> Fetcher:
        with self._lock:
            if self._fetcher is None:
                addresses = hub_addresses()
                self._fetcher = Fetcher(
                    self.catalog,
                    self.disk_cache,
                    self.credentials,
                    host.model_folders,
                    civitai=addresses["civitai"],
                    huggingface=addresses["huggingface"],
                    version=pack_version(),
                )
            return self._fetcher

    @property
    def proposer(self) -> Proposer:
        with self._lock:
            if self._proposer is None:
                self._proposer = Proposer(self.fetcher, self.catalog)
            return self._proposer

    def search_models(
        self, query: SearchQuery, *, hubs: Sequence[Hub], rules: SafetyRules
    ) -> SearchResult:
        """One page of the models on disk, those known from before, and those of `hubs`."""
        with self._lock:
            if self._search is None:
                self._search = ModelSearch(self.catalog)
        clients = {"civitai": self.fetcher.civitai(), "huggingface": self.fetcher.huggingface()}
        return self._search.search(
            query,
            hubs={hub: partial(clients[hub].search, allow_nsfw=rules.allow_nsfw) for hub in hubs},
            rules=rules,
        )

    # ------------------------------------------------------------------ catalog

    def start_scan(self, *, hash_files: bool = False, ask_civitai: bool = False) -> bool:
        """Read the model folders in the background; whether that began, as one scan runs at once.

        Args:
            hash_files: also hash the LoRA files whose hash is not known.
            ask_civitai: then send the known hashes to CivitAI, to learn what it knows of the files.
        """
        with self._lock:
            if self._scan is not None and not self._scan.join(0):
                return False
            by_hashes = self.fetcher.civitai().by_hashes if ask_civitai else None
            self._scan = BackgroundScan(self.catalog, hash_files=hash_files, by_hashes=by_hashes)
            return self._scan.start()

    def stop_scan(self) -> None:
        """End the scan at the next file or block."""
        with self._lock:
            if self._scan is not None:
                self._scan.stop()

    def scan_status(self) -> ScanStatus:
        with self._lock:
            return ScanStatus("idle") if self._scan is None else self._scan.status

    def lora_edit(self, name: str) -> Edit:
        """What the user says of a LoRA. Raises ModelFileError: there is no such file."""
        return self.catalog.edit_of(FileRef(folder="loras", name=name))

    def edit_lora(self, name: str, trigger_words: Any, weight: Any) -> Edit:
        """Keep what the user says of a LoRA; None leaves a field to the other sources.

        Raises:
            ModelFileError: there is no such file.
            SettingError: the trigger words are no texts, or the weight is no strength.
        """
        edit = made_edit(trigger_words, weight)
        self.catalog.edit(FileRef(folder="loras", name=name), edit)
        return edit

    def plan_cleanup(self, limits: CacheLimits) -> tuple[str, CleanupPlan]:
        """What keeping the downloaded files to the limits would take, and an id to do it by."""
        plan = self.disk_cache.plan(limits, in_use=self._files_in_use())
        with self._lock:
            self._cleanup = (uuid.uuid4().hex, plan)
            return self._cleanup

    def clean_up(self, plan_id: str) -> CleanupReport:
        """Do what the last `plan_cleanup` listed, less what changed since.

        Raises:
            SettingError: that plan is not the last one, or was done already.
        """
        with self._lock:
            if self._cleanup is None or self._cleanup[0] != plan_id:
                raise SettingError(
                    "This is not the last dry run, or it was done already. Ask for a new one."
                )
            _, plan = self._cleanup
            self._cleanup = None
        return self.disk_cache.clean(plan, in_use=self._files_in_use())

    # ------------------------------------------------------------------ models

    def choose_model(self, **choice: Any) -> ModelChoice:
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
        library = self.catalog.models("checkpoints")
        if analysis is not None:
            self._user_loras(analysis, ())  # one that is missing is no checkpoint's fault
        plan = plan or plan_memory(read_machine(host.HostMachine()))
        given = {"text_encoder": bool(text_encoders), "vae": vae is not None}

        def problem(entry: ModelEntry) -> str:
            try:
                return missing_parts(self.catalog.path(entry.file), given)
            except ModelFileError as error:
                return str(error)

        chosen = choose_checkpoint(
            library.entries,
            analysis,
            loras=partial(self._lora_support, analysis),
            memory=MemoryLimits(
                min(plan.device.total_bytes, plan.max_vram_bytes or plan.device.total_bytes),
                plan.ram_total_bytes,
                plan.device.kind in OWN_MEMORY,
            ),
            ratings=rated_models(self.database),
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
        parts = (self.catalog.revision("checkpoints"), self.lora_revision())
        return " ".join((*parts, self.learning_revision()))

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
        fetched = self.fetcher.fetch(
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
        plan = plan or plan_memory(read_machine(host.HostMachine()))
        loaded = self._load(choice, plan)
        for file in loaded.info.files:
            self._hash_in_background(self.catalog.path(file))
        self._used("model", loaded.info.files)
        placed = self.place(plan, loaded.model, loaded.clip, loaded.vae)
        return loaded._replace(
            **placed._asdict(), report=f"{loaded.report}\n{pool_report(self.pool.state())}"
        )

    def _load(self, choice: ModelChoice, plan: MemoryPlan) -> LoadedModel:
        free = self._free_memory().ram
        short = self._ran_out_loading(choice, free) if plan.weight_dtype == "auto" else None
        setup, made_room = Setup(int8=short is not None), False
        while True:
            try:
                return load_model(
                    choice,
                    self.catalog,
                    plan,
                    pool=self.pool,
                    free=self._free_memory,
                    show=_show_allocation,
                    short=short,
                )
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                problem = _first_line(error)
            # Not in the handler: the error's frames hold what could be loaded.
            gave_way = self.pool.give_way() + host.unload_others()
            room = gave_way > 0 and not made_room
            means = Means(room=room, int8=plan.weight_dtype == "auto")
            step = next_step("load", setup, means)
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
                self._remember(_file_key(choice), LOADING, setup, free)

    def _ran_out_loading(self, choice: ModelChoice, free: int) -> str | None:
        found = self._recall(_file_key(choice), LOADING, free)
        if found is None:
            return None
        return f"loading it as it is ran out of memory on {found.at:%Y-%m-%d}"

    def _recall(self, model: str, configuration: str, free: int) -> Fallback | None:
        now = datetime.now(timezone.utc)
        machine = host.machine_key()
        return recall(self.database, machine, model, configuration, free=free, now=now)

    def _remember(self, model: str, configuration: str, setup: Setup, free: int) -> None:
        fallback = Fallback(setup, free, datetime.now(timezone.utc))
        remember(self.database, host.machine_key(), model, configuration, fallback)

    def forget_fallbacks(self) -> int:
        """Forget what ran out of memory before; how many configurations that were."""
        return forget(self.database)

    def place(self, plan: MemoryPlan, model: Any, clip: Any, vae: Any) -> Placed:
        """MODEL, CLIP and VAE of any loader, kept to the plan. Raises as `memory.place` does."""
        return place(plan, model, clip, vae, self._free_memory())

    def plan_memory(
        self, strategy: str, weight_dtype: str, max_vram_gb: float = 0.0
    ) -> tuple[MemoryPlan, str]:
        """The memory policy of this machine and a report for people."""
        machine = host.HostMachine()
        plan = plan_memory(
            read_machine(machine),
            strategy=strategy,
            weight_dtype=weight_dtype,
            max_vram_gb=max_vram_gb,
        )
        text = "\n".join(
            (
                report(plan, read_free(machine)),
                report_resources(read_resources(machine)),
                pool_report(self.pool.state()),
            )
        )
        log.info("Intelligent Generation: %s", text)
        return plan, text

    # ------------------------------------------------------------------ prompts

    @property
    def encoder(self) -> Encoder | None:
        """Turns texts into vectors of their meaning; None where its model is not on this machine.
        Loaded at first use, which takes seconds."""
        return self._opened_encoder().encoder

    def _opened_encoder(self) -> Opened:
        with self._encoder_lock:  # a lock of its own, as it is held for seconds
            if self._encoder is None:
                self._encoder = open_encoder(model_folder())
                if self._encoder.problem:
                    log.info(
                        "Prompts and LoRAs are compared by words alone. %s", self._encoder.problem
                    )
            return self._encoder

    def analyze(
        self,
        prompt: str,
        negative_prompt: str,
        syntax: Any,
        ollama: OllamaSettings | None = None,
    ) -> PromptAnalysis:
        """What a prompt says, by a language model in Ollama where one is named, else by the
        built-in analyzer.

        Raises:
            PromptError: see `prompting.analyze`.
            SettingError: no model is named.
        """
        if ollama is None:
            return analyze(prompt, negative_prompt, syntax=syntax, encoder=self.encoder)
        if not ollama.model:
            raise SettingError(
                "analyzer is Ollama, but ollama_model is empty. Write the name of an installed "
                "model there."
            )
        analysis = analyze(
            prompt,
            negative_prompt,
            syntax=syntax,
            ollama=ollama,
            cache=StoredAnswers(self.database),
            check=host.check_interrupt,
            encoder=self.encoder,
        )
        if analysis.analyzer != "ollama":
            with self._lock:
                self._model_failures[ollama.model] += 1
        return analysis

    def language_model_failures(self, model: str | None) -> str:
        """Changes when a language model gave no usable answer; None: any of them."""
        with self._lock:
            failures = self._model_failures
            return str(sum(failures.values()) if model is None else failures[model.strip()])

    # ------------------------------------------------------------------ model pool

    @property
    def pool(self) -> ModelPool:
        """The models that stay in RAM. Raises SettingError: its settings file is damaged."""
        with self._lock:
            if self._pool is None:
                machine = host.HostMachine()
                self._pool = ModelPool(
                    read_settings(_pool_settings()),
                    total_ram=machine.total_ram(),
                    free_ram=machine.free_ram,
                )
            return self._pool

    def keep_outputs(self, request: str, parts: Sequence[str], outputs: Sequence[Any]) -> None:
        """Keep what a stock loader loaded, and put clones in its place.

        Args:
            request: what tells this call of the loader from others.
            parts: what each output is: model, clip or vae.
            outputs: the node's outputs, each a list of values.
        """
        if any(len(values) != 1 for values in outputs):
            return
        loaded = host.LoadedModel(None, None, None)._replace(
            **{part: values[0] for part, values in zip(parts, outputs, strict=True)}
        )
        files = host.files_of(loaded)
        if not files:
            return
        key = ModelKey(tuple(file_stamp(file) for file in files), ("stock loader", request))
        kept = host.KeptModel(loaded)
        if self.pool.add(key, kept):
            self._stock_keys[request] = key
            lent = kept.lend()
            for part, values in zip(parts, outputs, strict=True):
                values[0] = getattr(lent, part)

    def kept_outputs(self, request: str, parts: Sequence[str]) -> list[list[Any]] | None:
        """What the pool has of an earlier call of a stock loader; None where it has nothing, or
        a file has changed since."""
        key = self._stock_keys.get(request)
        if key is None:
            return None
        try:
            now = tuple(file_stamp(Path(stamp.path)) for stamp in key.files)
        except ModelFileError:
            now = ()
        lent = self.pool.take(key) if now == key.files else None
        if lent is None:
            del self._stock_keys[request]
            self.pool.unload([key.id])
            self.pool.carry_out()
            return None
        return [[getattr(lent, part)] for part in parts]

    def settle_pool(self) -> None:
        """Bring the pool back into its limits, if it holds anything. After a prompt."""
        if self._pool is not None:
            self._pool.settle()

    def memory(self) -> tuple[PoolState, list[host.Residency]]:
        """What the model pool holds, and what ComfyUI has loaded for computing."""
        return self.pool.state(), host.residency()

    def set_pool(self, given: Any) -> None:
        """Change the pool's settings, for good. Raises SettingError."""
        with self._lock:
            settings = made_settings(given, self.pool.state().settings)
            write_settings(_pool_settings(), settings)
            self.pool.change(settings)

    def unload(self, ids: Sequence[str] | None = None) -> bool:
        """Take models out of the pool, all of them with None; whether it is done already.

        It is not while a prompt runs; then `finish_unloading` does it, or the next load.

        Raises:
            SettingError: an id that is not in the pool.
        """
        unknown = set(ids or ()) - set(self.pool.unload(ids))
        if unknown:
            raise SettingError(
                f"The model pool holds no {', '.join(sorted(unknown))}. GET "
                "/intelligent_generation/memory lists the ids."
            )
        return self.finish_unloading()

    def finish_unloading(self) -> bool:
        """Do what `unload` could not do yet; False while a prompt runs."""
        return host.when_idle(self.pool.carry_out)

    def _free_memory(self) -> FreeMemory:
        """What can be had for a model that is to be loaded."""
        free = read_free(host.HostMachine(), evictable=host.evictable_vram())
        return free._replace(ram=free.ram + self.pool.evictable_bytes)

    # ------------------------------------------------------------------ planning

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
        library = self.catalog.loras()
        family = self._info(model).family
        users = self._user_loras(analysis, stack)
        history = history_of(rated_loras(self.database, family=family), analysis)

        def planned(
            library: LoraLibrary, remote: Mapping[FileRef, RemoteLora] = NO_REMOTE
        ) -> LoraPlan:
            similarity = None
            if settings.max_loras > len(users):
                similarity = self.meaning.similarity(
                    library, analysis.clauses, check=host.check_interrupt
                )
            return recommend(
                analysis,
                library,
                family=family,
                fit=lora_fit,
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

    def optimize(
        self,
        analysis: PromptAnalysis,
        model: Any,
        *,
        priority: Any = "BALANCED",
        batch_size: int = 1,
        lora_plan: LoraPlan | None = None,
        task: Any = "t2i",
        overrides: SamplingOverrides = NO_OVERRIDES,
        limits: Limits = NO_LIMITS,
        second_pass: Any = "auto",
    ) -> SamplingPlan:
        """The sampling plan for a prompt and a model (ModelInfo or MODEL)."""
        info = self._info(model)
        return optimize(
            analysis,
            info,
            priority=priority,
            overrides=overrides,
            wish=second_pass,
            costs=self._costs(info),
            limits=limits,
            ratings=rated_settings(
                self.database,
                family=info.family,
                variant=info.variant,
                style=analysis.intent.style,
                priority=priority,
            ),
            batch_size=batch_size,
            accelerators=self._accelerators(lora_plan),
            task=task,
            samplers=host.sampler_names(),
            schedulers=host.scheduler_names(),
            sigma_nodes=host.sigma_nodes(),
        )

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
        plan = with_user_loras(plan, _once_each(self._stack_loras(stack)))
        plan, named, downloaded = self._present(
            plan, references, allow_download=allow_download, waits=waits
        )
        there = {lora.file.name for lora in plan.loras}
        added = [
            lora
            for lora, wanted in zip(named, references, strict=True)
            if wanted.strength is not None or lora.entry.file.name not in there
        ]
        plan = with_user_loras(plan, _once_each(added))
        located = plan.model_copy(
            update={
                "loras": tuple(
                    lora
                    if lora.pending
                    else lora.model_copy(update={"file": self._locate(lora.file)})
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
            outcome = apply_loras(model, clip, located.loras, locate=self._locate, add=True)
            self._used("loras", [lora.file for lora in outcome.applied])
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
        settled = self.fetcher.settle(wanted, "lora", stop=host.check_interrupt)
        for lora, (item, *_) in zip(pending, settled, strict=False):
            _as_planned(lora, item)
        if not waits:
            fetched = self.fetcher.bring(
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

    # ------------------------------------------------------------------ generating

    def generate(self, request: SamplerRequest) -> SamplerResult:
        """Run a plan: sample, save, record, explain.

        Raises:
            PlanError: AUTO with a plan text, or a plan that is not complete.
            IntelligentGenerationError: see `generating.run` and `save_generation`.
        """
        plan, differences = self._decide(request)
        host.check_interrupt()
        costs = self._costs(plan.model)
        work = work_of(plan.sampling, plan.memory.strategy if plan.memory else "AUTO")
        predicted = costs(work)
        plan, sampled, conceded = self._run(plan, request, work.configuration)
        self._used("model", plan.model.files)
        self._used("loras", [lora.file for lora in sampled.loras.applied])
        cost = RunCost(
            predicted_seconds=predicted.seconds,
            seconds=sampled.timings.total,
            predicted_memory_bytes=predicted.memory_bytes,
            memory_bytes=sampled.memory_bytes,
            runs=predicted.runs,
        )
        skipped = (*plan.loras.skipped, *sampled.loras.skipped)
        notices = (
            *plan.analysis.notices,
            *plan.model.notices,
            *plan.loras.notices,
            *plan.sampling.notices,
            *sampled.loras.notices,
            *conceded,
        )
        plan = self._with_hashes(plan)
        generation = Generation(
            id=uuid.uuid4().hex,
            created_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            mode=request.mode,
            plan=plan,
            applied=sampled.loras.applied,
            timings=sampled.timings,
            cost=cost,
            explanation=explain(
                plan,
                mode=request.mode,
                skipped=skipped,
                notices=notices,
                differences=differences,
                timings=sampled.timings,
                cost=cost,
            ),
            differences=differences,
            notices=notices,
            pack_version=pack_version(),
            host=host.describe(),
        )
        generation = self._save(request, generation, sampled.image)
        measured = _measured(plan.model, work, costs, cost, sampled.timings)
        add_run(
            self.database,
            generation.id,
            host.machine_key(),
            measured,
            now=datetime.now(timezone.utc),
        )
        return SamplerResult(sampled.image, sampled.latent, generation)

    def _run(
        self, plan: GenerationPlan, request: SamplerRequest, configuration: str
    ) -> tuple[GenerationPlan, Sampled, tuple[Notice, ...]]:
        """Run the plan; where it is out of memory, with less and less. What was run then is in
        the plan that is returned, and told by the notices."""
        model, clip, vae = request.model, request.clip, request.vae
        key = model_key(plan.model)
        free = self._memory_for_running()
        asked = _setup_of(plan)
        found = self._recall(key, configuration, free)
        plan, setup, notices = self._as_it_worked(plan, asked, found)
        if setup.int8 and not asked.int8:
            swapped = self._at_int8(plan, request)
            if swapped is None:
                setup = setup._replace(int8=False)
            else:
                model, clip, plan = swapped
        done = Progress()
        made_room = fell_short = no_int8 = False
        while True:
            try:
                sampled = run(plan, model, clip, vae, locate=self._locate, progress=done)
                break
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                problem = _first_line(error)
            # Not in the handler: the error's frames hold what was being computed.
            gave_way = self.pool.give_way() + host.unload_others()
            room = gave_way > 0 and not made_room
            means = self._means(plan, asked, room=room)
            means = means._replace(int8=means.int8 and not no_int8)
            stage = done.stage
            log.warning("Intelligent Generation: out of memory (%s): %s", stage, problem)
            step = next_step(stage, setup, means)
            if step is not None and step.rung == "int8":
                swapped = self._at_int8(plan, request)
                if swapped is None:
                    no_int8 = True
                    step = next_step(stage, setup, means._replace(int8=False))
                else:
                    model, clip, plan = swapped
                    done = Progress()
            if step is None:
                raise self._nothing_left(plan, stage, problem, notices, free)
            setup, made_room, fell_short = step.setup, made_room or room, True
            notices = (*notices, _conceded(stage, step))
            plan = _with_setup(plan, setup)
        if sampled.tiled_decode and not setup.tiled_decode:
            setup, fell_short = setup._replace(tiled_decode=True), True
            plan = _with_setup(plan, setup)
            notices = (*notices, _tiled_by_comfyui())
        if fell_short and setup != asked:
            self._remember(key, configuration, setup, free)
        return plan, sampled, notices

    def _as_it_worked(
        self, plan: GenerationPlan, asked: Setup, found: Fallback | None
    ) -> tuple[GenerationPlan, Setup, tuple[Notice, ...]]:
        """The plan with what was given up for it before."""
        if found is None or plan.concessions != Concessions():
            return plan, asked, ()
        means = self._means(plan, asked, room=False)
        setup = asked._replace(
            strategy=(
                found.setup.strategy if found.setup.strategy in means.cheaper else asked.strategy
            ),
            int8=asked.int8 or (found.setup.int8 and means.int8),
            tiled_decode=found.setup.tiled_decode,
            images_at_once=min(found.setup.images_at_once, asked.images_at_once),
        )
        if setup == asked:
            return plan, asked, ()
        message = (
            f"This size and batch ran out of memory on {found.at:%Y-%m-%d}, so the image is made "
            "as it worked then. DELETE /intelligent_generation/memory/fallbacks forgets that."
        )
        notice = Notice(level="info", code="ran_out_of_memory_before", message=message)
        return _with_setup(plan, setup), setup, (notice,)

    def _memory_for_running(self) -> int:
        """What can be had on the device that samples."""
        free = self._free_memory()
        return free.vram if host.HostMachine().device_kind in OWN_MEMORY else free.ram

    def _means(self, plan: GenerationPlan, asked: Setup, *, room: bool) -> Means:
        sampling = plan.sampling
        sizes = [(sampling.width, sampling.height)]
        if sampling.second_pass is not None:
            sizes.append((sampling.second_pass.width, sampling.second_pass.height))
        now = plan.memory.strategy if plan.memory else "AUTO"
        own_memory = host.HostMachine().device_kind in OWN_MEMORY
        return Means(
            room=room,
            # A strategy that the user named stays.
            cheaper=cheaper_than(now) if own_memory and asked.strategy == "AUTO" else (),
            # ComfyUI's cache keeps the model as it was: at int8 there is less on the device, and
            # where that is the processor, more in all.
            int8=own_memory and _can_be_int8(plan),
            tiles=max(max(size) for size in sizes) > host.TILE,
        )

    def _at_int8(
        self, plan: GenerationPlan, request: SamplerRequest
    ) -> tuple[Any, Any, GenerationPlan] | None:
        """MODEL and CLIP of the plan's files at int8, and the plan with them; None where RAM is
        short for that. CLIP stays where another node made it, or it lies in other files."""
        part, text = plan.model.part("diffusion_model"), plan.model.part("text_encoder")
        assert part is not None
        policy = plan.memory or plan_memory(read_machine(host.HostMachine()))
        policy = policy.model_copy(update={"weight_dtype": "int8"})
        if policy.strategy == "DISK_OFFLOAD":  # which uses weights as the file has them
            policy = policy.model_copy(update={"strategy": "SEQUENTIAL"})
        choice = ModelChoice(part.files[0], variant=plan.model.variant or "")
        try:
            loaded = self._load(choice, policy)
        except ShortOfMemoryError as error:
            log.warning("Intelligent Generation: int8 was not possible: %s", error)
            return None
        same = text is not None and text.files == part.files
        clip = loaded.clip if same else request.clip
        info = describe_model(loaded.model, clip, request.vae)
        info = info.model_copy(update={"notices": plan.model.notices})
        return loaded.model, clip, plan.model_copy(update={"model": info})

    def _nothing_left(
        self,
        plan: GenerationPlan,
        stage: str,
        problem: str,
        notices: Sequence[Notice],
        free: int,
    ) -> ShortOfMemoryError:
        tried = " ".join(notice.message for notice in notices)
        advice = "Choose a smaller size or a smaller model, or close other programs."
        main = plan.model.part("diffusion_model")
        if main is not None and _can_be_int8(plan):
            # Only the loader can make it smaller where all of it is in RAM.
            choice = ModelChoice(main.files[0])
            self._remember(_file_key(choice), LOADING, Setup(int8=True), free)
            advice = f"HubModelLoader will load it at int8 when it loads it again. {advice}"
        return ShortOfMemoryError(
            f"Out of memory at the stage {stage}: {problem}. {tried} Nothing else is left to try. "
            f"{advice}".replace("  ", " ")
        )

    def _decide(self, request: SamplerRequest) -> tuple[GenerationPlan, tuple[str, ...]]:
        """The plan to run, and for MANUAL what AUTO would have done otherwise."""
        manual = request.mode == "MANUAL"
        if manual and not request.plan_text.strip():
            raise PlanError("mode is MANUAL, but there is no plan text. Give one, or use AUTO.")
        if not manual and request.plan_text.strip():
            raise PlanError(
                "There is a plan text, but mode is AUTO, which does not read it. Set mode to "
                "MANUAL, or clear the plan text."
            )
        if not manual and request.analysis is None:
            raise PlanError(
                "Nothing says what to make: wire PromptAnalyzer's analysis in, or set mode to "
                "MANUAL and give a plan text."
            )
        info = describe_model(request.model, request.clip, request.vae)
        parts: dict[str, Any] = {"model": info, "memory": request.memory_plan}
        parts["seed"] = secrets.randbelow(2**32) if request.seed is None else request.seed
        auto: GenerationPlan | None = None
        differences: tuple[str, ...] = ()
        try:
            if request.analysis is not None:
                parts |= self._auto_parts(request, request.analysis, info)
                auto = GenerationPlan(**parts)
        except IntelligentGenerationError as error:
            if not manual:
                raise
            differences = (f"failed: {error}",)
        if not manual:
            assert auto is not None
            return auto, ()
        base = {
            name: value.model_dump(mode="json") if isinstance(value, PlanObject) else value
            for name, value in parts.items()
            if value is not None
        }
        taken = self._with_real_model(edit_plan(base, request.plan_text), info)
        if auto is not None:
            differences = difference(taken, auto, compare_seed=request.seed is not None)
        return taken, differences

    def _auto_parts(
        self, request: SamplerRequest, analysis: PromptAnalysis, info: ModelInfo
    ) -> dict[str, Any]:
        loras = request.lora_plan
        if loras is None:
            loras = self._own_loras_only(analysis, info)
        elif not loras.segments:
            # From a LORA_STACK alone: it has LoRAs and no text.
            own = self._own_loras_only(analysis, info)
            tags = {lora.file.name for lora in own.loras}
            twice = [lora.file.name for lora in loras.loras if lora.file.name in tags]
            if twice:
                raise LoraError(
                    f"LoRA {twice[0]} is named twice, in the prompt and in the LORA_STACK. Take "
                    "one out."
                )
            loras = loras.model_copy(
                update={"segments": own.segments, "loras": own.loras + loras.loras}
            )
        elif not _made_for(loras.segments, analysis.segments):
            raise PlanError(
                "lora_plan was made from another prompt than analysis. Wire both from the same "
                "PromptAnalyzer."
            )
        loras = without_pending(self._found(loras), analysis.segments)
        sampling = request.sampling_plan or self.optimize(analysis, info, lora_plan=loras)
        return {"analysis": analysis, "loras": loras, "sampling": sampling}

    def _found(self, plan: LoraPlan) -> LoraPlan:
        """The plan with those pending LoRAs that are on disk by now."""

        def found(lora: PlannedLora) -> PlannedLora:
            if not lora.pending or not lora.file.sha256:
                return lora
            try:
                file = self._locate(lora.file)
            except ModelFileError:
                return lora
            return lora.model_copy(update={"file": file, "pending": False})

        return plan.model_copy(update={"loras": tuple(map(found, plan.loras))})

    def _with_real_model(self, plan: GenerationPlan, info: ModelInfo) -> GenerationPlan:
        """The plan with the model that is wired in; a notice if it was made with another."""
        notices = list(info.notices)
        for part in plan.model.parts:
            planned = [file for file in part.files if file.sha256]
            now = info.part(part.role)
            if not planned or now is None:
                continue
            names = ", ".join(file.name for file in planned)
            role = part.role.replace("_", " ")
            if not now.files:
                message = (
                    f"The plan was made with the {role} {names}; whether that is what is wired in "
                    "cannot be told, as another node loaded it."
                )
            elif [file.sha256 for file in planned] != [self._sha256(file) for file in now.files]:
                present = ", ".join(file.name for file in now.files)
                message = (
                    f"The plan was made with the {role} {names}, and {present} is wired in, which "
                    "is another. The image will differ."
                )
            else:
                continue
            notices.append(
                Notice(level="warning", code="other_model_than_planned", message=message)
            )
        if info.files and plan.model.weight_dtype != info.weight_dtype:
            message = (
                f"The plan was made with weights in {plan.model.weight_dtype}, and they are in "
                f"{info.weight_dtype} now. The image will differ slightly. Set weight_dtype in "
                "MemoryStrategy to change that."
            )
            notices.append(Notice(level="warning", code="other_weight_dtype", message=message))
        info = info.model_copy(update={"notices": tuple(notices)})
        return plan.model_copy(update={"model": info})

    def _save(
        self, request: SamplerRequest, generation: Generation, image: torch.Tensor
    ) -> Generation:
        location = None
        if request.save != "off":
            height, width = image.shape[1:3]
            place = host.save_place(request.filename_prefix, request.save, width, height)
            location = SaveLocation(
                directory=place.directory,
                subfolder=place.subfolder,
                type=request.save,
                stem=place.filename,
                counter=place.counter,
            )
        text = {} if request.workflow_prompt is None else {"prompt": request.workflow_prompt}
        text |= request.extra_pnginfo or {}
        return save_generation(
            self.database,
            generation,
            host.to_pixels(image),
            location,
            {key: json.dumps(value) for key, value in text.items()},
            embed_metadata=host.metadata_enabled(),
            now=datetime.now(timezone.utc),
        )

    # ------------------------------------------------------------------ records

    def generation(self, generation_id: str) -> Generation:
        """The record with this id. Raises UnknownGenerationError."""
        found = load_generation(self.database, generation_id)
        if found is None:
            raise UnknownGenerationError(
                f"There is no generation {generation_id!r}. The ids of the newest are listed at "
                "/intelligent_generation/generations."
            )
        return found

    def recent(self, limit: int) -> tuple[Generation, ...]:
        """The newest records, newest first."""
        return recent(self.database, limit)

    def rate(self, generation_id: str | None, rating: int, comment: str) -> str:
        """Store a rating; what was done, in words. Raises SettingError, UnknownGenerationError."""
        if generation_id is None and rating != NOT_RATED:
            raise SettingError(
                "There is nothing to rate: link IntelligentSampler's generation, or give a "
                "generation_id."
            )
        return record_rating(
            self.database, generation_id or "", rating, comment, now=datetime.now(timezone.utc)
        ).message

    def replay(self, generation_id: str) -> dict[str, Any]:
        """An API prompt that makes a recorded image again. Raises as `generation` and
        `replay_prompt` do."""
        return self._replay(self.generation(generation_id))

    def replay_png(self, data: bytes) -> dict[str, Any]:
        """The same from the bytes of a PNG that IntelligentSampler saved."""
        return self._replay(generation_from_png(data))

    def replay_json(self, data: bytes) -> dict[str, Any]:
        """The same from a Generation as JSON."""
        return self._replay(Generation.from_json(data.decode("utf-8", errors="replace")))

    def _replay(self, generation: Generation) -> dict[str, Any]:
        return replay_prompt(generation.plan, locate=self._locate)

    # ------------------------------------------------------------------ helpers

    def _info(self, model: Any) -> ModelInfo:
        return model if isinstance(model, ModelInfo) else describe_model(model)

    def _lora_support(self, analysis: PromptAnalysis | None, family: str) -> LoraSupport:
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

    def _costs(self, info: ModelInfo) -> Costs:
        """What runs of a model cost here. The first call for a data type measures the machine."""
        part = info.part("diffusion_model")
        dtype = "float32" if part is None else part.dtype
        machine = host.machine_key()
        speed = machine_speed(
            self.database, machine, dtype, measure=lambda: Speed(*host.measure_speed(dtype))
        )
        return Costs(info, speed, measured_runs(self.database, machine, model_key(info)))

    def _user_loras(
        self, analysis: PromptAnalysis, stack: Sequence[tuple[str, float, float]]
    ) -> list[UserLora]:
        tags = [
            UserLora(
                entry=self.catalog.lora_by_name(tag.name),
                model_strength=tag.model_strength,
                clip_strength=tag.clip_strength,
                origin="prompt_tag",
            )
            for tag in analysis.lora_tags
        ]
        return _once_each([*tags, *self._stack_loras(stack)])

    def _stack_loras(self, stack: Sequence[tuple[str, float, float]]) -> list[UserLora]:
        return [
            UserLora(
                entry=self.catalog.lora_by_name(name),
                model_strength=model_strength,
                clip_strength=clip_strength,
                origin="stack",
            )
            for name, model_strength, clip_strength in stack
            if name not in ("", "None")  # how stack nodes of other packs write an empty slot
        ]

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
                entry, remote = self.catalog.lora_by_name(item.name), None
            authors = entry.recommended_weight or 0.0
            # As with recommended ones, 0 and below gives no direction.
            own = authors if authors > 0 else default_strength(len(references))
            strength = own if lora.strength is None else lora.strength
            loras.append(UserLora(entry, strength, strength, "reference", remote))
        return loras

    def _own_loras_only(self, analysis: PromptAnalysis, info: ModelInfo) -> LoraPlan:
        # Without LoRARecommender nothing is chosen, but the user's tags still count.
        return self.recommend(analysis, info, settings=RecommendSettings(max_loras=0))

    def _accelerators(self, plan: LoraPlan | None) -> tuple[str, ...]:
        """Variants of the plan's acceleration LoRAs, such as `lcm` or `lightning 4`."""
        if plan is None or not plan.loras:
            return ()
        variants = {e.file.name: e.variant for e in self.catalog.loras().entries if e.variant}
        names = (lora.file.name for lora in plan.loras)
        found = (accelerator(name, variants.get(name)) for name in names)
        return tuple(one for one in found if one is not None)

    def _used(self, what: str, files: Sequence[FileRef]) -> None:
        """Note that files are in use, in place of those noted before as the same thing."""
        paths = []
        for file in files:
            with suppress(ModelFileError):  # removed while it was used
                paths.append(self.catalog.path(file))
        with self._lock:
            self._in_use[what] = paths
        self.disk_cache.touch(paths)

    def _files_in_use(self) -> list[Path]:
        with self._lock:
            return [path for paths in self._in_use.values() for path in paths]

    def _locate(self, file: FileRef) -> FileRef:
        return self.catalog.find(file, stop=host.check_interrupt)[0]

    def _with_hashes(self, plan: GenerationPlan) -> GenerationPlan:
        """The plan with the SHA-256 of every file in it."""

        def hashed(file: FileRef) -> FileRef:
            if file.sha256:
                return file
            try:
                size = self.catalog.path(file).stat().st_size
                return file.model_copy(update={"sha256": self._sha256(file), "size": size})
            except ModelFileError as error:
                # Moved or replaced while it was used: the image is there, its record is not whole.
                log.warning("Intelligent Generation: %s is not in the record: %s", file, error)
                return file

        parts = tuple(
            part.model_copy(update={"files": tuple(map(hashed, part.files))})
            for part in plan.model.parts
        )
        loras = tuple(
            lora.model_copy(update={"file": hashed(lora.file)}) for lora in plan.loras.loras
        )
        return plan.model_copy(
            update={
                "model": plan.model.model_copy(update={"parts": parts}),
                "loras": plan.loras.model_copy(update={"loras": loras}),
            }
        )

    def _hash_in_background(self, path: Path) -> None:
        def work() -> None:
            try:
                self.catalog.sha256(path)
            except IntelligentGenerationError as error:
                # Whoever needs the hash asks again and gets the error.
                log.debug("Hashing %s in the background failed: %s", path, error)

        with self._lock:
            running = self._hashing.get(path)
            if running is None or not running.is_alive():
                # A daemon: ComfyUI's shutdown must not wait for it.
                self._hashing[path] = threading.Thread(target=work, daemon=True)
                self._hashing[path].start()

    def _sha256(self, file: FileRef) -> str:
        path = self.catalog.path(file)
        with self._lock:
            running = self._hashing.pop(path, None)
        while running is not None and running.is_alive():
            host.check_interrupt()
            running.join(timeout=0.05)
        return self.catalog.sha256(path, stop=host.check_interrupt)


def model_references(source: str, text: str) -> tuple[Reference, ...]:
    """The references of HubModelLoader.

    Args:
        source: should be a key of `HUB_SOURCES`.
        text: one reference a line.

    Raises:
        SettingError: no such source, or no reference, one not understood, or one of the other
            hub.
    """
    if source not in HUB_SOURCES:
        known = ", ".join(HUB_SOURCES)
        raise SettingError(f"source must be one of local, {known}, not {source!r}.")
    references = read_references(text, tuple(hub_addresses().values()))
    if not references:
        raise SettingError(
            f"source is {source}, and reference is empty. Paste the address of a model there."
        )
    for reference in references:
        hub = "huggingface" if isinstance(reference, HuggingFaceReference) else "civitai"
        if hub != HUB_SOURCES[source]:
            other = next(name for name, id in HUB_SOURCES.items() if id == hub)
            raise SettingError(
                f"reference {reference} is for {other}, but source is {source}. Set source to "
                f"{other}, or name a model of {source}."
            )
    return references


def lora_references(text: str) -> tuple[LoraReference, ...]:
    """The references of CivitAILoRAFetcher. Raises SettingError."""
    return read_lora_references(text, tuple(hub_addresses().values()))


def approved_plan(mode: str, text: str) -> LoraPlan | None:
    """The LoRA plan that a person approved; None when there is no text.

    Args:
        mode: CivitAILoRAFetcher's.
        text: a LoraPlan, GenerationPlan or Generation as JSON.

    Raises:
        PlanError: it is none, or mode is AUTO, which does not read it.
        SettingError: there is no such mode.
    """
    if mode not in ("AUTO", "ASSISTED"):
        raise SettingError(f"mode must be AUTO or ASSISTED, not {mode!r}.")
    if not text.strip():
        return None
    if mode == "AUTO":
        raise PlanError(
            "There is a plan text, but mode is AUTO, which does not read it. Set mode to "
            "ASSISTED, or clear the plan text."
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"The plan text is not JSON: {error}. Paste the whole text.") from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "Generation":
        return Generation.from_data(data).plan.loras
    if kind == "GenerationPlan":
        return GenerationPlan.from_data(data).loras
    return LoraPlan.from_data(data)


def made_edit(trigger_words: Any, weight: Any) -> Edit:
    """What the user says of a LoRA, from JSON. Raises SettingError."""
    if trigger_words is not None:
        texts = isinstance(trigger_words, list) and all(
            isinstance(word, str) and word.strip() for word in trigger_words
        )
        if not texts:
            raise SettingError(f"trigger_words must be a list of texts, not {trigger_words!r}.")
        trigger_words = tuple(word.strip() for word in trigger_words)
    if weight is not None:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not -100 <= weight <= 100:
            raise SettingError(f"weight must be a strength from -100 to 100, not {weight!r}.")
        weight = float(weight)
    return Edit(trigger_words, weight)


def meaning_notice(status: MeaningStatus) -> Notice | None:
    """What to say of a recommendation that was made by words alone, or partly so."""
    if status.state == "ready":
        return None
    if status.state in ("off", "failed"):
        message = f"LoRAs were compared by words alone. {status.problem}"
        return Notice(level="info", code="words_alone", message=message)
    message = (
        f"{status.done} of {status.total} LoRAs are ready to be compared by meaning; the others "
        "were compared by words alone. The rest is being read in the background."
    )
    return Notice(level="info", code="meaning_incomplete", message=message)


def hub_addresses() -> dict[Hub, str]:
    """Base addresses of the hubs: those of the environment, else the well-known ones."""
    return {
        "civitai": os.environ.get("CIVITAI_ENDPOINT", "").strip() or CIVITAI,
        "huggingface": os.environ.get("HF_ENDPOINT", "").strip() or HUGGINGFACE,
    }


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _file_key(choice: ModelChoice) -> str:
    return f"{choice.model.folder}/{choice.model.name}"


def _can_be_int8(plan: GenerationPlan) -> bool:
    """Whether the pack loaded the model in full, by its own choice, and nobody changed it."""
    part = plan.model.part("diffusion_model")
    return (
        (plan.memory is None or plan.memory.weight_dtype == "auto")
        and plan.model.weight_dtype == "auto"
        and not plan.model.carried_patches
        and part is not None
        and len(part.files) == 1
        and part.dtype in ("float16", "bfloat16", "float32")
    )


def _setup_of(plan: GenerationPlan) -> Setup:
    at_once = plan.concessions.images_at_once or plan.sampling.batch_size
    return Setup(
        strategy=plan.memory.strategy if plan.memory else "AUTO",
        int8=plan.model.weight_dtype == "int8",
        tiled_decode=plan.concessions.tiled_decode,
        images_at_once=min(at_once, plan.sampling.batch_size),
    )


def _with_setup(plan: GenerationPlan, setup: Setup) -> GenerationPlan:
    whole = setup.images_at_once >= plan.sampling.batch_size
    conceded = Concessions(
        tiled_decode=setup.tiled_decode,
        images_at_once=None if whole else setup.images_at_once,
    )
    memory = plan.memory
    if setup.strategy != (memory.strategy if memory else "AUTO"):
        memory = memory or plan_memory(read_machine(host.HostMachine()))
        memory = memory.model_copy(update={"strategy": setup.strategy})
    return plan.model_copy(update={"concessions": conceded, "memory": memory})


_STAGES = {
    "encode": "while the text was encoded",
    "sample": "while sampling",
    "refine": "in the second pass",
    "decode": "while the image was decoded",
}


def _conceded(stage: str, step: Step) -> Notice:
    message = f"Memory ran out {_STAGES[stage]}, so {step.done}. {step.changes}"
    return Notice(level="warning", code=f"out_of_memory_{step.rung}", message=message)


def _tiled_by_comfyui() -> Notice:
    message = (
        "Memory ran out while the image was decoded, so ComfyUI decoded it in tiles of 512 pixels. "
        "Fine detail and tone may differ slightly between tiles."
    )
    return Notice(level="warning", code="out_of_memory_tiled_decode", message=message)


def _pool_settings() -> Path:
    return host.user_directory() / "model_pool.json"


def _show_allocation(text: str) -> None:
    log.info("Intelligent Generation loads:\n%s", text)
    host.show_text(text)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _measured(
    model: ModelInfo, work: Work, costs: Costs, cost: RunCost, timings: Timings
) -> Measured:
    sampling = timings.sample + timings.refine
    return Measured(
        model=model_key(model),
        configuration=work.configuration,
        pixels=work.pixels,
        worked_out=costs.worked_out(work),
        sampling_seconds=sampling,
        other_seconds=timings.total - sampling,
        memory_bytes=cost.memory_bytes,
        predicted_seconds=cost.predicted_seconds,
    )


def _made_for(planned: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """Whether the segments are these, but for trigger words added at the end."""
    return (
        len(planned) == len(segments)
        and planned[:-1] == segments[:-1]
        and planned[-1].startswith(segments[-1].rstrip(", "))
    )


def _once_each(loras: Sequence[UserLora]) -> list[UserLora]:
    """The same LoRAs; one named twice alike counts once. Raises LoraError for two strengths."""
    by_name: dict[str, UserLora] = {}
    for lora in loras:
        name = lora.entry.file.name
        other = by_name.setdefault(name, lora)
        if (other.model_strength, other.clip_strength) != (
            lora.model_strength,
            lora.clip_strength,
        ):
            raise LoraError(
                f"LoRA {name} is named twice, at {other.model_strength:g} and at "
                f"{lora.model_strength:g}. Take one out."
            )
    return list(by_name.values())


@lru_cache(maxsize=1)
def services() -> Services:
    """The one Services of this process."""
    url = os.environ.get(DATABASE_URL, "").strip()
    return Services(url or f"sqlite:///{host.user_directory() / 'intelligent_generation.db'}")


@lru_cache(maxsize=1)
def pack_version() -> str:
    """The version in pyproject.toml, for the record."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "unknown"
