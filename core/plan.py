"""The objects that flow from node to node. Imports nothing of ours but errors and limits.

Every object is an immutable pydantic model that turns into JSON and back without loss
(`to_json`, `from_json`). The same JSON goes into the PNG, the database and the API.

The way of the data::

    prompt -> PromptAnalysis -> LoraPlan -+
                    |                     +-> GenerationPlan -> Generation
    ModelInfo ------+-> SamplingPlan -----+
    MemoryPlan ---------------------------+

Conventions: strengths, weights, confidences and factors are plain floats (a strength of 1.0
is the LoRA as trained); confidence and complexity are in [0, 1]; sizes in pixels are image
pixels, not latent cells; times are seconds; file and memory sizes are bytes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from .errors import PlanError
from .limits import MAX_SEED

SCHEMA_VERSION = 1
"""Version of the JSON form of every object here. Raised when a reader of the old form would
misread the new one; `from_json` refuses versions above it."""

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=-100.0, le=100.0)]
"""A LoRA strength, in the range of ComfyUI's own LoraLoader."""

ConceptCategory = Literal[
    "character", "style", "content", "setting", "quality", "lighting", "camera", "technical"
]
ComplexityBand = Literal["SIMPLE", "MODERATE", "COMPLEX"]
StyleIntent = Literal["ANIME", "PHOTOREAL", "ARTISTIC", "GENERAL"]
ContentIntent = Literal["CHARACTER", "PORTRAIT", "LANDSCAPE", "SCENE", "OBJECT", "ABSTRACT"]
QualityIntent = Literal["LOW", "MEDIUM", "HIGH"]
PromptSyntax = Literal["comfy", "a1111"]
Priority = Literal["SPEED", "BALANCED", "QUALITY", "MEMORY"]
Mode = Literal["AUTO", "MANUAL"]
SaveTarget = Literal["output", "temp", "off"]
WeightDtype = Literal["auto", "fp16", "bf16", "fp8", "int8", "int4"]
Strategy = Literal["AUTO", "FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD"]

_Object = TypeVar("_Object", bound="PlanObject")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlanObject(_Frozen):
    """An object that travels alone: its JSON names its kind and the version of its form.

    Each has a field `kind` with its own name, which is also `KIND` of the class.
    """

    KIND: ClassVar[str]

    schema_version: Literal[1] = SCHEMA_VERSION

    def to_json(self, *, indent: int | None = None) -> str:
        """The object as JSON text (UTF-8 characters kept, keys in declared order)."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls: type[_Object], text: str) -> _Object:
        """The object that `to_json` wrote.

        Raises:
            PlanError: not JSON, another kind of object, a newer schema version, or a field
                that is missing, unknown or out of range. The message names the field.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"This is not JSON: {error}. Paste the whole text.") from error
        return cls.from_data(data)

    @classmethod
    def from_data(cls: type[_Object], data: Any) -> _Object:
        """The object described by parsed JSON. Raises PlanError as `from_json` does."""
        if not isinstance(data, dict):
            raise PlanError(f"A {cls.KIND} is a JSON object, this is a {type(data).__name__}.")
        version = data.get("schema_version", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise PlanError(
                f"This {cls.KIND} has schema_version {version}; this version of Intelligent "
                f"Generation reads up to {SCHEMA_VERSION}. Update the node pack."
            )
        try:
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the object itself"
            more = error.error_count() - 1
            raise PlanError(
                f"This {cls.KIND} cannot be used: {where}: {first['msg']}"
                + (f" (and {more} more)" if more else "")
                + ". Correct it or start from an unedited plan."
            ) from error


class Notice(_Frozen):
    """Something the person should know. It never stops a run; what must stop one is raised."""

    level: Literal["info", "warning", "error"]
    """error: what was asked for could not be had, and what was done instead."""
    code: str
    """Stable machine name, snake_case, e.g. `lora_keys_unmatched`."""
    message: str
    """A full sentence: what, which file or word, what to do."""


class FileRef(_Frozen):
    """A model file as ComfyUI names it. Found again by `sha256` and `size` first, then by name."""

    folder: str
    """Key in ComfyUI's `folder_paths`: checkpoints, diffusion_models, text_encoders, vae, loras."""
    name: str
    """Path below that folder, with forward slashes, e.g. `styles/ink.safetensors`."""
    size: Annotated[int, Field(ge=0)] | None = None
    """Bytes."""
    sha256: str | None = None
    """Lower-case hex of the whole file; None until it has been computed."""


# --------------------------------------------------------------------------- prompt


class Span(_Frozen):
    """A piece of the text with one emphasis weight, as ComfyUI will read it."""

    text: str
    weight: float
    """Multiplies the piece's embedding. 1.0 is neutral; `(x)` 1.1, `(x:1.3)` 1.3."""


class Clause(_Frozen):
    """One comma- or sentence-separated thing asked for, with its emphasis."""

    text: str
    """Without parentheses and weights, trimmed, escapes resolved."""
    weight: float
    """Mean emphasis weight of its characters."""


class Concept(_Frozen):
    """A phrase of the prompt and the category it belongs to."""

    category: ConceptCategory
    text: str
    """As it stands in the prompt, lower case."""
    weight: float
    """Emphasis weight of the clause it stands in."""


class Intent(_Frozen):
    """What kind of picture is asked for."""

    style: StyleIntent
    content: ContentIntent
    quality: QualityIntent
    confidence: UnitInterval
    """How clear the evidence is: 0 nothing found, 1 everything points one way."""


class LoraTag(_Frozen):
    """A `<lora:name:strength>` the user wrote into the prompt: the user's own choice."""

    name: str
    model_strength: Strength = 1.0
    clip_strength: Strength = 1.0


class PromptAnalysis(PlanObject):
    """What the prompt says. Made by PromptAnalyzer."""

    KIND: ClassVar[str] = "PromptAnalysis"
    kind: Literal["PromptAnalysis"] = "PromptAnalysis"

    prompt: str
    """As typed."""
    negative_prompt: str = ""
    """As typed."""
    syntax: PromptSyntax = "comfy"
    segments: tuple[str, ...]
    """The positive text to encode, in ComfyUI's syntax, LoRA tags taken out. Usually one;
    a1111's BREAK makes more: each is encoded alone and the results are concatenated."""
    negative_segments: tuple[str, ...]
    """Likewise for the negative text; `("",)` when there is none."""
    spans: tuple[Span, ...]
    """The positive text cut where its emphasis weight changes, in order."""
    clauses: tuple[Clause, ...]
    lora_tags: tuple[LoraTag, ...] = ()
    concepts: tuple[Concept, ...]
    mood: tuple[str, ...] = ()
    """Mood words found, lower case, e.g. `serene`."""
    intent: Intent
    complexity: UnitInterval
    complexity_band: ComplexityBand
    """Below .3 SIMPLE, below .7 MODERATE, else COMPLEX."""
    analyzer: Literal["builtin", "ollama"] = "builtin"
    """Who found concepts, mood and intent. `builtin` also where Ollama was asked for in vain."""
    language_model: str | None = None
    """The model that Ollama ran, as it calls it, e.g. `llama3.2:3b`."""
    notices: tuple[Notice, ...] = ()

    def concepts_in(self, category: ConceptCategory) -> tuple[str, ...]:
        """Texts of the concepts of one category, in prompt order."""
        return tuple(c.text for c in self.concepts if c.category == category)


# --------------------------------------------------------------------------- model


class ModelPart(_Frozen):
    """One loaded part of a model."""

    role: Literal["diffusion_model", "text_encoder", "vae"]
    files: tuple[FileRef, ...] = ()
    """Where it was loaded from; empty when another loader made it."""
    dtype: str
    """Data type of most of its weights as loaded: float16, bfloat16, float8_e4m3fn, float32 ..."""
    parameters: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]


class Factor(_Frozen):
    """One named reason in a score. The score is the sum of `value * weight` over factors."""

    name: str
    value: float
    weight: float
    detail: str = ""
    """The words that matched, or what was measured."""


class RemoteLora(_Frozen):
    """Where a hub has a LoRA, and what it says of it."""

    hub: Literal["huggingface", "civitai"]
    reference: str
    """As CivitAILoRAFetcher's `references` takes it: `civitai:123@456`, which is model and
    version, or `hf:owner/name@commit/file`."""
    size: Annotated[int, Field(ge=0)] | None = None
    """Bytes, perhaps rounded by the hub; None when it does not say."""
    base_model: str = ""
    """As the hub writes it; empty when it does not say, as with the next two."""
    licence: str = ""
    """In words for a person."""
    creator: str = ""
    page: str = ""
    """Web page for a person."""


class SkippedModel(_Frozen):
    """A model that was considered and not taken, worth telling."""

    name: str
    code: str
    """lower_score, incomplete, not_text_to_image, unknown_family, too_large, nsfw ..."""
    reason: str


class ChosenModel(_Frozen):
    """Why a model was chosen, where the pack chose it."""

    file: FileRef
    score: float
    factors: tuple[Factor, ...]
    reason: str
    """A few sentences for people."""
    alternatives: tuple[SkippedModel, ...] = ()
    """The next best first."""
    candidates: Annotated[int, Field(ge=0)] = 0
    """How many models were compared."""


class ModelInfo(PlanObject):
    """What the loaded model is. Made by HubModelLoader, or read off any MODEL."""

    KIND: ClassVar[str] = "ModelInfo"
    kind: Literal["ModelInfo"] = "ModelInfo"

    name: str
    """For people: the file name, or `MODEL from another node`."""
    family: str
    """Id of a row in core/catalog/families.json, e.g. `sd15`, `sdxl`, `flux-dev`; `unknown`."""
    variant: str | None = None
    """Distillation or prediction variant: turbo, lightning, lcm, hyper, dmd, v-pred ..."""
    family_confidence: UnitInterval
    evidence: str
    """Why this family and variant: which tensors, header fields or class said so."""
    trained_size: tuple[PositiveInt, PositiveInt] | None = None
    """Width and height in pixels that the model was trained at, as its header says; None when it
    does not, and its family's own size holds."""
    trained_steps: PositiveInt | None = None
    """Steps that a distilled model was trained for, as its file's name says; None when it does
    not, and its variant's own steps hold."""
    nearest: str | None = None
    """Of an unknown family: the family whose tensors are most like this model's. Sampling starts
    from its figures; LoRAs do not go by it."""
    parts: tuple[ModelPart, ...] = ()
    weight_dtype: WeightDtype = "auto"
    """What its weights were loaded in; auto: as ComfyUI chose from the file and the device."""
    carried_patches: Annotated[int, Field(ge=0)] = 0
    """Changes that other nodes had made when MODEL and CLIP came in: patches of LoRAs and merges,
    options, replaced parts. The record cannot say what they were."""
    choice: ChosenModel | None = None
    """Why it was chosen, where HubModelLoader's `model` was auto; None for the user's choice."""
    notices: tuple[Notice, ...] = ()

    def part(self, role: str) -> ModelPart | None:
        return next((part for part in self.parts if part.role == role), None)

    @property
    def checkpoint(self) -> str:
        """Name of the file that the diffusion model was loaded from; empty when another loader
        made it."""
        part = self.part("diffusion_model")
        return part.files[0].name if part and part.files else ""

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every file the model was loaded from, each once."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.files))


# --------------------------------------------------------------------------- LoRAs


class PlannedLora(_Frozen):
    """A LoRA to apply."""

    file: FileRef
    title: str
    model_strength: Strength
    clip_strength: Strength
    origin: Literal["recommended", "prompt_tag", "stack", "reference"]
    """recommended: chosen by the pack; the others are the user's own choice and keep their
    strength (reference: named by a hub's address, id or hash; the author's strength where the
    user gave none). The pack raises an error where it cannot honour a user's choice; it skips a
    recommended one and says so."""
    trigger_words: tuple[str, ...] = ()
    """Those that this plan puts into the prompt because they were needed and missing."""
    serves: tuple[str, ...] = ()
    """Clauses of the prompt it was chosen for."""
    confidence: UnitInterval = 1.0
    factors: tuple[Factor, ...] = ()
    reason: str
    """One sentence for people."""
    remote: RemoteLora | None = None
    """The hub that it comes from, of one that the plan was made with before it was here."""
    pending: bool = False
    """Not on this machine: it has to be fetched before it can be applied. `file` says where it
    will be, and its hash where the hub tells that."""

    @model_validator(mode="after")
    def _can_be_had(self) -> PlannedLora:
        if self.pending and self.remote is None:
            raise ValueError("a pending LoRA needs remote, which says where to get it")
        return self

    @property
    def by_user(self) -> bool:
        return self.origin != "recommended"


class SkippedLora(_Frozen):
    """A LoRA that was considered and left out, worth telling."""

    name: str
    code: str
    """conflict, other_base_model, unreadable, keys_unmatched, below_confidence, over_limit,
    not_fetched ..."""
    reason: str


class LoraPlan(PlanObject):
    """Which LoRAs, how strong, and the text that goes with them. Made by LoRARecommender."""

    KIND: ClassVar[str] = "LoraPlan"
    kind: Literal["LoraPlan"] = "LoraPlan"

    family: str
    """Model family it was made for."""
    loras: tuple[PlannedLora, ...] = ()
    """In the order of application."""
    segments: tuple[str, ...]
    """PromptAnalysis.segments with the needed trigger words added."""
    skipped: tuple[SkippedLora, ...] = ()
    candidates: Annotated[int, Field(ge=0)] = 0
    """How many LoRAs were compared, those that hubs offered among them."""
    notices: tuple[Notice, ...] = ()

    @property
    def pending(self) -> tuple[PlannedLora, ...]:
        """Those that have to be fetched first."""
        return tuple(lora for lora in self.loras if lora.pending)


# --------------------------------------------------------------------------- sampling


class Reason(_Frozen):
    """Why one value of the sampling plan is what it is."""

    field: str
    value: str
    source: Literal[
        "family", "intent", "complexity", "priority", "user", "lora", "machine", "limit", "ratings"
    ]
    """limit: a limit of time or memory changed it; ratings: those of earlier images did."""
    text: str
    """One sentence, with the source of the figure."""


Side = Annotated[int, Field(ge=16, le=16384, multiple_of=8)]
"""Width or height of an image in pixels."""


class SecondPass(_Frozen):
    """The first image scaled up and sampled once more, as the stock graph of two KSamplers does."""

    width: Side
    height: Side
    space: Literal["latent", "image"] = "latent"
    """What is scaled: the latent (LatentUpscale), or the decoded image (ImageScale), which is
    encoded again."""
    method: str = "nearest-exact"
    """How LatentUpscale or ImageScale interpolates, e.g. `bicubic`."""
    steps: Annotated[int, Field(ge=1, le=10000)]
    denoise: Annotated[float, Field(gt=0.0, le=1.0)]
    cfg: Annotated[float, Field(ge=0.0, le=100.0)]
    sampler: str
    scheduler: str


class Estimate(_Frozen):
    """What a plan is expected to give and to take on this machine."""

    quality: UnitInterval
    """How near the plan comes to what experts use when nothing limits them."""
    fidelity: UnitInterval
    """How much of what the prompt asks for (detail, shape) the plan leaves room for."""
    seconds: Annotated[float, Field(ge=0.0)]
    """Loading of models not counted."""
    memory_bytes: Annotated[int, Field(ge=0)]
    """Peak on the device that samples: VRAM, or RAM on a CPU."""
    runs: Annotated[int, Field(ge=0)] = 0
    """Measured runs of this very configuration behind the figures; 0: worked out from the model's
    size, the machine's speed, and runs of other configurations."""
    error: Annotated[float, Field(ge=0.0)] | None = None
    """How far off the predicted times of those runs were: median share of the measured time."""


class Alternative(_Frozen):
    """A plan that no other one beats in quality, fidelity, time and memory at once."""

    steps: int
    sampler: str
    scheduler: str
    width: int
    height: int
    second_pass: bool
    quality: float
    fidelity: float
    seconds: float
    memory_bytes: int
    chosen: bool = False


FRONT_SIZE = 8
"""Alternatives kept in a plan at most."""


class SamplingPlan(PlanObject):
    """How to sample. Made by ParameterOptimizer."""

    KIND: ClassVar[str] = "SamplingPlan"
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "steps",
        "cfg",
        "sampler",
        "scheduler",
        "sigmas",
        "width",
        "height",
        "batch_size",
        "denoise",
        "clip_skip",
        "guidance",
        "shift",
        "second_pass",
    )
    """The fields that change the image; the others say why."""

    kind: Literal["SamplingPlan"] = "SamplingPlan"

    steps: Annotated[int, Field(ge=1, le=10000)]
    cfg: Annotated[float, Field(ge=0.0, le=100.0)]
    sampler: str
    """A ComfyUI sampler name, e.g. `dpmpp_2m`."""
    scheduler: str
    """A ComfyUI scheduler name, e.g. `karras`."""
    sigmas: str | None = None
    """ComfyUI's scheduler node that spaces the steps in place of `scheduler`, e.g.
    `Flux2Scheduler`; `scheduler` is then what comes nearest to it in a KSampler. None, or a
    denoise below 1: `scheduler` spaces them."""
    width: Side
    height: Side
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    denoise: UnitInterval = 1.0
    clip_skip: Annotated[int, Field(ge=1, le=24)] | None = None
    """1 = last layer of the text encoder, 2 = the one before, as people count it; None leaves
    the model's own."""
    guidance: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Embedded (distilled) guidance for models that take it, such as Flux dev; None otherwise."""
    shift: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Flow-matching time shift; None leaves the model's own."""
    second_pass: SecondPass | None = None
    priority: Priority = "BALANCED"
    max_seconds: Annotated[float, Field(gt=0.0)] | None = None
    """The user's limit of time."""
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """The user's limit of VRAM (of RAM on a CPU)."""
    estimate: Estimate | None = None
    """None in plans that were made without knowing the machine."""
    front: Annotated[tuple[Alternative, ...], Field(max_length=FRONT_SIZE)] = ()
    """The best trade-offs, fastest first, the chosen plan among them."""
    strategy: str
    """Name of the row and rule that made the plan, e.g. `sdxl + QUALITY`."""
    confidence: UnitInterval
    reasons: tuple[Reason, ...] = ()
    notices: tuple[Notice, ...] = ()


# --------------------------------------------------------------------------- memory


class DeviceMemory(_Frozen):
    """One device as it was read."""

    name: str
    kind: Literal["cuda", "rocm", "mps", "xpu", "directml", "cpu", "other"]
    total_bytes: Annotated[int, Field(ge=0)]


class MemoryPlan(PlanObject):
    """The memory policy. Made by MemoryStrategy. Holds totals and limits, never free memory,
    so that the same machine gives the same plan."""

    KIND: ClassVar[str] = "MemoryPlan"
    kind: Literal["MemoryPlan"] = "MemoryPlan"

    strategy: Strategy = "AUTO"
    """Where the parts of a model are held:

    - AUTO: all on the device together where they fit there; else text encoders and VAE leave it
      while the diffusion model samples, what does not fit is streamed, and the weights stay in
      their files when RAM is short. Where ComfyUI streams weights itself, as it does that.
    - FULL_GPU: all on the device, whole, together.
    - CPU_OFFLOAD: the diffusion model on the device; text encoders and VAE run on the processor.
    - SEQUENTIAL: one part at a time on the device, nothing else beside it.
    - DISK_OFFLOAD: as SEQUENTIAL, and the weights stay in their files, not in RAM.
    """
    max_vram_bytes: Annotated[int, Field(gt=0)] | None = None
    """What a run may take of the device's memory, weights and computing together."""
    weight_dtype: WeightDtype = "auto"
    """What models are loaded in. auto: as ComfyUI chooses; int8 where memory is short."""
    device: DeviceMemory
    ram_total_bytes: Annotated[int, Field(ge=0)]
    dynamic_vram: bool
    """Whether this ComfyUI streams weights into VRAM by itself."""
    vram_state: str
    """ComfyUI's mode: NORMAL_VRAM, LOW_VRAM, HIGH_VRAM, NO_VRAM, SHARED, DISABLED."""
    notices: tuple[Notice, ...] = ()


# --------------------------------------------------------------------------- generation


class Concessions(_Frozen):
    """How a run is made smaller because it ran out of memory otherwise."""

    tiled_decode: bool = False
    """Decoded in tiles of 512 pixels that overlap by 128."""
    images_at_once: Annotated[int, Field(ge=1)] | None = None
    """The batch is sampled and decoded in parts of so many images; None: whole."""


class GenerationPlan(PlanObject):
    """Everything that decides the image. The same plan gives the same latent on one machine."""

    KIND: ClassVar[str] = "GenerationPlan"
    kind: Literal["GenerationPlan"] = "GenerationPlan"

    analysis: PromptAnalysis
    model: ModelInfo
    loras: LoraPlan
    sampling: SamplingPlan
    memory: MemoryPlan | None = None
    concessions: Concessions = Concessions()
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]


class ImageFile(_Frozen):
    """A saved image, as ComfyUI's /view takes it."""

    filename: str
    subfolder: str
    type: Literal["output", "temp"]


class AppliedLora(_Frozen):
    """What applying a planned LoRA did."""

    file: FileRef
    model_weights: Annotated[int, Field(ge=0)]
    """Diffusion-model weights it patched."""
    clip_weights: Annotated[int, Field(ge=0)]
    """Text-encoder weights it patched."""


class Timings(_Frozen):
    """Wall time of each part of a run, in seconds."""

    loras: float
    encode: float
    sample: float
    decode: float
    refine: float = 0.0
    """The second pass, with scaling up."""

    @property
    def total(self) -> float:
        return self.loras + self.encode + self.sample + self.decode + self.refine


class RunCost(_Frozen):
    """What a run was predicted to take, and what it took."""

    predicted_seconds: Annotated[float, Field(ge=0.0)]
    seconds: Annotated[float, Field(ge=0.0)]
    predicted_memory_bytes: Annotated[int, Field(ge=0)]
    memory_bytes: Annotated[int, Field(ge=0)] | None = None
    """Measured peak on the device that samples; None where it cannot be read."""
    runs: Annotated[int, Field(ge=0)]
    """Earlier runs of the same configuration that the prediction rests on."""

    @property
    def time_error(self) -> float:
        """Predicted over measured time, less 1: 0.1 is 10 % too long."""
        return self.predicted_seconds / max(self.seconds, 1e-9) - 1

    @property
    def memory_error(self) -> float | None:
        """Likewise for memory."""
        measured = self.memory_bytes
        return None if not measured else self.predicted_memory_bytes / measured - 1


class Generation(PlanObject):
    """One finished run: the plan, what happened, and why. The record that is stored."""

    KIND: ClassVar[str] = "Generation"
    kind: Literal["Generation"] = "Generation"

    id: str
    """Unique, lower-case, safe in file names and URLs."""
    created_at: str
    """UTC, ISO 8601 with milliseconds."""
    mode: Mode
    plan: GenerationPlan
    applied: tuple[AppliedLora, ...] = ()
    images: tuple[ImageFile, ...] = ()
    """Empty when saving was off."""
    timings: Timings
    cost: RunCost | None = None
    """None in records of earlier versions."""
    explanation: str
    differences: tuple[str, ...] = ()
    """MANUAL: what AUTO would have done otherwise."""
    notices: tuple[Notice, ...] = ()
    pack_version: str
    host: str
    """ComfyUI and torch versions and the device, for the record."""
