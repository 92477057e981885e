"""Which model family a file belongs to: by its tensors, then its header, then its name.

The facts are rows of families.json and signatures.json; this module only reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import PlanError
from .headers import SafetensorsHeader, TensorInfo

UNKNOWN = "unknown"
MOST_BY_NAME = 0.4
"""The highest confidence that a name alone gives."""

_FIELD_CHARS = 4_000  # of a header field: a merge recipe can be a megabyte


class Family(NamedTuple):
    """One row of families.json."""

    id: str
    name: str
    architecture: str
    """Families of one architecture have the same tensors: their LoRAs can be applied to each
    other, if not always to good effect."""
    parent: str | None
    """The family whose defaults stand in for this one's."""
    ancestors: tuple[str, ...]
    """What it was trained from, nearest first."""
    comfy_classes: tuple[str, ...]
    """Classes of comfy.supported_models that ComfyUI's own detection gives."""
    civitai_names: tuple[str, ...]
    """CivitAI's `baseModel` values."""
    header_names: tuple[str, ...]
    """Regular expressions for how headers (modelspec, kohya, ai-toolkit) name it, searched in
    the lower-case text, as it is and with its words set apart at `_` and capitals."""
    names: tuple[str, ...]
    """More regular expressions, looser ones, for names of files and repositories."""
    latent_channels: int
    text_encoder_type: str
    """Member of ComfyUI's comfy.sd.CLIPType, in lower case, for text encoders loaded apart."""
    text_encoders: tuple[str, ...]
    """The text encoders that it was trained with."""
    source: str


class Detection(NamedTuple):
    """What a file was recognised as."""

    family: str
    variant: str | None
    confidence: float
    """In [0, 1], of the family: above 0.9 the tensors leave no doubt; about 0.75 the tensors say
    the architecture but not which of its families; 0.7 the name chose among those; below 0.6 only
    a header says so, from 0.4 down only the name."""
    evidence: str
    """One sentence part for people."""
    nearest: str | None = None
    """Of an unknown family: the one whose tensors look most like these, for figures to start from.
    Neither its LoRAs nor its text encoders fit."""


# --------------------------------------------------------------------------- the table


@cache
def all_families() -> Mapping[str, Family]:
    """Every family by id."""
    return {row["id"]: _family(**row) for row in _data("families.json")["families"]}


def _family(**row: Any) -> Family:
    fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in row.items()}
    return Family(**fields)


def family(id: str) -> Family:
    """The row of a family.

    Raises:
        PlanError: there is no such family.
    """
    try:
        return all_families()[id]
    except KeyError:
        raise PlanError(
            f"There is no model family {id!r}. Known are: {', '.join(all_families())}."
        ) from None


def family_of_comfy_class(class_name: str) -> str:
    """The family id for a class name of comfy.supported_models, `unknown` for one not listed.

    The class says no more than the tensors: SD3 also stands for SD 3.5, Flux for Kontext and
    SDXL for Pony, Illustrious and NoobAI. Where the file is at hand, ask `detect_checkpoint`.
    """
    return _by_comfy_class().get(class_name, UNKNOWN)


@lru_cache(4_096)
def family_of_base_model(name: str) -> str:
    """The family id for a base model as a hub writes it, `unknown` for one not listed.

    Takes CivitAI's `baseModel` values in any case, and the repositories of Hugging Face by the
    patterns that also read headers.
    """
    if known := _by_civitai_name().get(name.strip().casefold()):
        return known
    found = _families_in(name[:_FIELD_CHARS])
    exact = [id for id in found if not any(id in family(other).ancestors for other in found)]
    return exact[0] if len(exact) == 1 else UNKNOWN


def lora_fit(lora_family: str, model_family: str) -> float:
    """How well a LoRA of one family serves a model of another, in [0, 1].

    1 for the same family, 0 for another architecture (its tensors match nothing), between them
    for families of one architecture (the `fits` of families.json, with their sources). `unknown`
    fits nothing, itself included: without the architecture a recommendation is a guess. A LoRA
    that the user names is not bound by this, whether its keys match is seen when it is applied.

    Raises:
        PlanError: one of the two is no family id.
    """
    lora, model = family(lora_family), family(model_family)
    if UNKNOWN in (lora.id, model.id):
        return 0.0
    if lora.id == model.id:
        return 1.0
    return _fits().get(frozenset((lora.id, model.id)), 0.0)


@cache
def _by_comfy_class() -> Mapping[str, str]:
    return {name: row.id for row in all_families().values() for name in row.comfy_classes}


@cache
def _by_civitai_name() -> Mapping[str, str]:
    return {
        name.casefold(): row.id for row in all_families().values() for name in row.civitai_names
    }


@cache
def _fits() -> Mapping[frozenset[str], float]:
    return {frozenset(row["families"]): row["fit"] for row in _data("families.json")["fits"]}


@cache
def _data(name: str) -> dict:
    return json.loads(Path(__file__).with_name(name).read_text("utf-8"))


# --------------------------------------------------------------------------- detection


def detect_checkpoint(header: SafetensorsHeader) -> Detection:
    """What a checkpoint or diffusion model is.

    Takes the layouts ComfyUI loads: names below `model.diffusion_model.` (checkpoints), bare
    names (diffusion_models folder), and diffusers names. A v-prediction model that says so only
    in its metadata is recognised, though ComfyUI itself looks for the `v_pred` key.
    """
    if has_lora_weights(header):
        return Detection(UNKNOWN, None, 0.9, "it holds LoRA weights, not a model")
    model = _Names(_without_prefix(header.tensors), _weight_features)
    detection = _settle(_first_match("checkpoint", model), _claims("checkpoint", header.metadata))
    if detection.family == UNKNOWN and (like := _first_match("resembles", model)):
        evidence = f"{detection.evidence}; nearest are those of {like.family}: {like.says}"
        detection = detection._replace(evidence=evidence, nearest=like.family)
    variant = _tensor_variant(detection.family, model, header) or _said_variant(
        "checkpoint", detection.family, header.metadata
    )
    return _with_variant(detection, variant)


def detect_model(header: SafetensorsHeader, name: str) -> Detection:
    """`detect_checkpoint`, with the name of the file where tensors and header leave it open.

    The name chooses among the families that a header could have chosen among (Pony, Illustrious
    and NoobAI have SDXL's tensors), gives the variant that nothing in the file tells, and stands
    alone where the tensors are those of no family.
    """
    found = detect_checkpoint(header)
    said = detect_name(name)
    if found.family == UNKNOWN and found.confidence == 0.0 and found.variant is None:
        return said if said.confidence >= _NAMED else found
    if said.family in _told_by_header(found.family) and "; its header:" not in found.evidence:
        evidence = f"{found.evidence}; its name: {_short(Path(name).name)}"
        found = found._replace(family=said.family, confidence=_BY_NAME, evidence=evidence)
    if found.variant is None and found.family != UNKNOWN:
        return _with_variant(found, _named_variant(found.family, name))
    return found


def detect_name(name: str) -> Detection:
    """What the name of a file, a repository or a diffusers pipeline suggests, for want of better.

    Of several families that it names the more exact one counts, then the one named at most
    length. Confidence is at most 0.4. A file name that names none and bears no mark of later
    years (fp8, gguf, turbo ...) is taken for SD 1.5, which most such files are, at 0.2.
    """
    text = name[:_FIELD_CHARS]
    named = {id: length for id, length in _named_families(text).items() if length}
    exact = [id for id in named if not any(id in family(other).ancestors for other in named)]
    if UNKNOWN in named:  # a decoder, whatever it decodes
        return Detection(
            UNKNOWN, None, MOST_BY_NAME, f"by its name it makes no image: {_short(text)}"
        )
    if not exact:
        return _unnamed(text)
    id = max(exact, key=lambda one: named[one])
    confidence = MOST_BY_NAME if len(exact) == 1 else _NAMED
    found = Detection(id, None, confidence, f"only its name says so: {_short(text)}")
    return _with_variant(found, _named_variant(id, text))


def _unnamed(name: str) -> Detection:
    row = _data("signatures.json")["unmarked_names"]
    if not name or re.search(row["marks"], _plain(name)):
        variant = _named_variant(UNKNOWN, name) if name else None
        nothing = Detection(UNKNOWN, None, 0.0, f"its name says nothing: {_short(name)}")
        return _with_variant(nothing, variant)
    found = Detection(row["family"], None, row["confidence"], f"{row['is']}: {_short(name)}")
    return _with_variant(found, _named_variant(row["family"], name))


def detect_lora_name(name: str) -> str | None:
    """The variant that the name of a LoRA's file suggests, such as lightning; None for none."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    return next(iter(_variants_in(_plain(stem), "lora", None)), None)


def accelerator(name: str, variant: str | None) -> str | None:
    """What a LoRA does to sampling: its variant, with the steps that its file's name tells.

    `lightning 4` for `Qwen-Image-Lightning-4steps-V1.0.safetensors`; None for a plain LoRA.
    """
    steps = named_steps(name)
    return f"{variant} {steps}" if variant and steps else variant


def detect_lora(header: SafetensorsHeader) -> Detection:
    """What a LoRA was made for, and whether it is an acceleration LoRA.

    Reads kohya (`lora_unet_…`, `lora_te…`), diffusers and PEFT names, OneTrainer, SimpleTuner and
    ai-toolkit, in the forms LoRA, LoCon, LoHa, LoKr and DoRA. Input widths and block names give
    the architecture; the header chooses among the families of one architecture, and stands
    alone, with a confidence of at most 0.5, where the names say nothing.
    """
    if not has_lora_weights(header):
        return Detection(UNKNOWN, None, 0.9, "it holds no LoRA weights")
    names = _Names(header.tensors, _lora_features, normalise=True)
    detection = _settle(_first_match("lora", names), _claims("lora", header.metadata))
    return _with_variant(detection, _said_variant("lora", detection.family, header.metadata))


def trained_size(header: SafetensorsHeader) -> tuple[int, int] | None:
    """Width and height in pixels that a model was trained at, as its header says.

    Reads `modelspec.resolution` ("1024x1024"; ModelSpec 1.0). None where it is missing, is no
    such pair, or lies outside 64 to 8192.
    """
    match = _SIZE.fullmatch(header.metadata.get("modelspec.resolution", ""))
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    return (width, height) if all(64 <= side <= 8192 for side in (width, height)) else None


def named_size(name: str) -> tuple[int, int] | None:
    """Width and height in pixels that a file's name says: `512x512`, `256px`; None for none."""
    for match in _NAMED_SIZE.finditer(name.lower()):
        width = int(match[1] or match[3])
        height = int(match[2] or match[3])
        if all(128 <= side <= 4096 for side in (width, height)):
            return width, height
    return None


def named_steps(name: str) -> int | None:
    """Steps that a file's name says a distilled model was made for: `4step`, `8-steps`; 1 to 16."""
    found = _STEPS.search(_plain(name))
    return int(found[1]) if found and 1 <= int(found[1]) <= _MOST_DISTILLED_STEPS else None


def has_lora_weights(header: SafetensorsHeader) -> bool:
    """Whether any tensor is part of a LoRA (LoCon, LoHa, LoKr, DoRA, OFT, GLoRA, difference)."""
    return _LORA_MARK.search("\n".join(header.tensors)) is not None


class _Signature(NamedTuple):
    family: str
    says: str
    confidence: float
    header_chooses: tuple[str, ...]
    """Families with the same tensors as `family`, of which a header may name one."""
    all: tuple[str, ...]
    any: tuple[str, ...]
    none: tuple[str, ...]
    features: tuple[_Feature, ...]

    def matches(self, names: _Names) -> bool:
        text = names.text
        return (
            (not self.any or any(part in text for part in self.any))
            and all(part in text for part in self.all)
            and not any(part in text for part in self.none)
            and all(feature.holds(names) for feature in self.features)
        )


class _Feature(NamedTuple):
    module: re.Pattern[str]
    inputs: frozenset[int]
    outputs: frozenset[int]
    ratio: int | None

    def holds(self, names: _Names) -> bool:
        found = names.features(self.module)
        if found is None:
            return False
        inputs, outputs = found
        if self.ratio is not None:
            return bool(inputs) and outputs == self.ratio * inputs
        return (not self.inputs or inputs in self.inputs) and (
            not self.outputs or outputs in self.outputs
        )


class _Names:
    """The tensor names of a file as one text, one a line: a signature is then a few `in`s."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        features: Callable[[Mapping[str, TensorInfo], str], tuple[int, int] | None],
        *,
        normalise: bool = False,
    ) -> None:
        text = "\n" + "\n".join(tensors) + "\n"
        self.text = text.replace(".", "_") if normalise else text
        self._tensors = tensors
        self._features = features
        self._known: dict[re.Pattern[str], tuple[int, int] | None] = {}

    def features(self, module: re.Pattern[str]) -> tuple[int, int] | None:
        """Input and output features of the first module whose name matches and that tells."""
        if module not in self._known:
            self._known[module] = self._search(module)
        return self._known[module]

    def _search(self, module: re.Pattern[str]) -> tuple[int, int] | None:
        keys = None
        for hit in module.finditer(self.text):
            keys = keys or list(self._tensors)
            line = self.text.count("\n", 0, hit.start() + 1) - 1
            if (found := self._features(self._tensors, keys[line])) is not None:
                return found
        return None


def _weight_features(tensors: Mapping[str, TensorInfo], key: str) -> tuple[int, int] | None:
    shape = tensors[key].shape
    return (shape[1], shape[0]) if key.endswith(".weight") and len(shape) >= 2 else None


_NAMED_SIZE = re.compile(r"(?<!\d)(?:(\d{3,4})x(\d{3,4})|(\d{3,4})px)(?!\w)")
_SIZE = re.compile(r"\s*(\d{2,4})\s*x\s*(\d{2,4})\s*", re.IGNORECASE)
_LORA_MARK = re.compile(
    r"\.lora_(?:down|up|mid|A|B)\b|\.lora\.(?:down|up)\.|_lora\d?\.(?:down|up)\.|lora_linear_layer"
    r"|\.(?:hada|lokr)_|\.oft_|\.dora_scale$|\.(?:diff|diff_b|set_weight|w_norm|b_norm)$"
    r"|\.reshape_weight$|\.[ab][12]\.weight$",
    re.MULTILINE,
)
_LORA_SUFFIX = re.compile(
    r"(?:\.alpha|\.dora_scale|\.lora_(?:down|up|mid)\.weight|\.lora_[AB](?:\.\w+)?(?:\.weight)?"
    r"|[._]lora\d?\.(?:down|up)\.weight|\.lora_linear_layer\.(?:down|up)\.weight"
    r"|\.(?:hada|lokr)_\w+|\.diff(?:_b)?)$"
)
# (suffix of the factor that meets the input, suffix of the one that makes the output)
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A", ".lora_B"),
)


def _lora_features(tensors: Mapping[str, TensorInfo], key: str) -> tuple[int, int] | None:
    suffix = _LORA_SUFFIX.search(key)
    if suffix is None:
        return None
    module = key[: suffix.start()]

    def shape(part: str) -> tuple[int, ...] | None:
        tensor = tensors.get(module + part)
        return tensor.shape if tensor is not None and len(tensor.shape) >= 2 else None

    for down, up in _PAIRS:
        if (into := shape(down)) and (out := shape(up)):
            return into[1], out[0]
    if (into := shape(".hada_w1_b")) and (out := shape(".hada_w1_a")):
        return into[1], out[0]
    outer = _product(shape(".lokr_w1"), shape(".lokr_w1_a"), shape(".lokr_w1_b"))
    inner = _product(shape(".lokr_w2"), shape(".lokr_w2_a"), shape(".lokr_w2_b"))
    if outer and inner:
        return outer[1] * inner[1], outer[0] * inner[0]
    if whole := shape(".diff"):
        return whole[1], whole[0]
    return None


def _product(
    whole: tuple[int, ...] | None, a: tuple[int, ...] | None, b: tuple[int, ...] | None
) -> tuple[int, int] | None:
    if whole:
        return whole[0], whole[1]
    return (a[0], b[1]) if a and b else None


_BY_NAME = 0.7
_NAMED = 0.3  # the name itself says a family
_MOST_DISTILLED_STEPS = 16
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[ -]?steps?(?![a-z])")


def _without_prefix(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    # The prefixes and the count of five are ComfyUI's, model_detection.unet_prefix_from_state_dict.
    prefixes = ("model.diffusion_model.", "model.model.", "net.")
    counts = {prefix: sum(name.startswith(prefix) for name in tensors) for prefix in prefixes}
    prefix = max(prefixes, key=lambda p: counts[p])
    if counts[prefix] <= 5:
        prefix = "model."
    inner = {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    return inner or tensors


def _first_match(kind: str, names: _Names) -> _Signature | None:
    return next((row for row in _signatures(kind) if row.matches(names)), None)


@cache
def _signatures(kind: str) -> tuple[_Signature, ...]:
    return tuple(_signature(row) for row in _data("signatures.json")[kind])


@cache
def _variant_signatures() -> tuple[tuple[_Signature, dict], ...]:
    rows = _data("signatures.json")["variants"]["tensors"]
    return tuple((_signature(row), row) for row in rows)


def _signature(row: dict) -> _Signature:
    def parts(key: str) -> tuple[str, ...]:  # "^" and "$" anchor at the ends of a name
        return tuple(re.sub(r"^\^|\$$", "\n", part) for part in row.get(key, ()))

    features = tuple(
        _Feature(
            re.compile(_line_pattern(feature["module"])),
            frozenset(feature.get("in", ())),
            frozenset(feature.get("out", ())),
            feature.get("ratio"),
        )
        for feature in row.get("features", ())
    )
    return _Signature(
        row.get("family", UNKNOWN),
        row["is"],
        row.get("confidence", 1.0),
        tuple(row.get("header_chooses", ())),
        parts("all"),
        parts("any"),
        parts("none"),
        features,
    )


def _line_pattern(module: str) -> str:
    # "^…$" in the data is a whole module name; the weight's own suffix follows it.
    return re.sub(r"\$$", r"(?=\\.weight\\n)", re.sub(r"^\^", r"(?<=\\n)", module))


# --------------------------------------------------------------------------- headers


def _settle(found: _Signature | None, claims: Mapping[str, str]) -> Detection:
    """Tensors decide the architecture, the header which of its families.

    `claims` has each family that the header names, with the words that name it.
    """
    if found is None:
        if len(claims) == 1:
            ((only, words),) = claims.items()
            return Detection(only, None, 0.5, f"only its header says so: {words}")
        return Detection(UNKNOWN, None, 0.0, "its tensors are those of no family known here")
    evidence = f"its tensors: {found.says}"
    if found.family == UNKNOWN:
        return Detection(UNKNOWN, None, found.confidence, evidence)
    children = [claim for claim in claims if claim in found.header_chooses]
    if len(children) == 1:
        words = claims[children[0]]
        return Detection(children[0], None, 0.9, f"{evidence}; its header: {words}")
    if children:
        named = "; ".join(claims[child] for child in children)
        more = f"; its header names several families: {named}"
        return Detection(found.family, None, found.confidence, evidence + more)
    if found.family in claims:
        sure = min(0.99, found.confidence + 0.05)
        agrees = f"; its header: {claims[found.family]}"
        return Detection(found.family, None, sure, evidence + agrees)
    if claims:
        doubt = max(0.5, found.confidence - 0.2)
        against = f"; against its header: {'; '.join(claims.values())}"
        return Detection(found.family, None, doubt, evidence + against)
    return Detection(found.family, None, found.confidence, evidence)


@cache
def _told_by_header(family: str) -> frozenset[str]:
    rows = (row for row in _signatures("checkpoint") if row.family == family)
    return frozenset(id for row in rows for id in row.header_chooses)


@lru_cache(4_096)
def _named_families(name: str) -> Mapping[str, int]:
    """Characters that name each family, 0 for none."""
    texts = {name.lower(), _plain(name)}
    return {
        id: max((len(hit[0]) for text in texts for hit in pattern.finditer(text)), default=0)
        for id, pattern in _name_patterns()
    }


@cache
def _name_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (row.id, re.compile("|".join((*row.header_names, *row.names))))
        for row in all_families().values()
        if row.header_names or row.names
    )


def _named_variant(model: str, name: str) -> tuple[str, str] | None:
    stem = name.replace("\\", "/").rpartition("/")[2]
    found = _variants_in(_plain(stem), "name", model)
    return (found[0], f"its name, {_short(stem)}") if found else None


def _claims(kind: str, metadata: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in _fields("family", kind):
        text = metadata.get(key, "")[:_FIELD_CHARS]
        for id in _families_in(text) if text else ():
            found.setdefault(id, f"{key} is {_short(text)}")
    # A family trained from another that is named as well is the more exact claim.
    return {
        id: words
        for id, words in found.items()
        if not any(id in family(other).ancestors for other in found)
    }


@lru_cache(4_096)  # thousands of LoRAs name the same few base models
def _families_in(text: str) -> tuple[str, ...]:
    texts = {text.lower(), _plain(text)}
    return tuple(
        id for id, patterns in _family_patterns() if any(patterns.search(form) for form in texts)
    )


@cache
def _family_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (row.id, re.compile("|".join(row.header_names)))
        for row in all_families().values()
        if row.header_names
    )


def _tensor_variant(model: str, names: _Names, header: SafetensorsHeader) -> tuple[str, str] | None:
    for signature, row in _variant_signatures():
        if "architectures" in row and family(model).architecture not in row["architectures"]:
            continue
        if signature.matches(names) and all(key in header.tensors for key in row.get("root", ())):
            return row["variant"], signature.says
    return None


def _said_variant(kind: str, model: str, metadata: Mapping[str, str]) -> tuple[str, str] | None:
    if kind == "checkpoint" and metadata.get("modelspec.prediction_type") == "v":
        return "v-pred", "modelspec.prediction_type is v"
    for key in _fields("variant", kind):
        text = metadata.get(key, "")[:_FIELD_CHARS]
        if text and (found := _variants_in(_plain(text), kind, model)):
            return found[0], f"{key} is {_short(text)}"
    return None


def _variants_in(text: str, kind: str, model: str | None) -> list[str]:
    return [
        variant
        for variant, pattern, models in _variant_words(kind)
        if (model is None or models is None or model in models) and pattern.search(text)
    ]


@cache
def _variant_words(kind: str) -> tuple[tuple[str, re.Pattern[str], frozenset[str] | None], ...]:
    return tuple(
        (
            row["variant"],
            re.compile(pattern),
            frozenset(row["families"]) if "families" in row else None,
        )
        for row in _data("signatures.json")["variants"]["words"]
        if (pattern := row.get(kind, row.get("checkpoint") if kind == "name" else None))
    )


def _with_variant(detection: Detection, found: tuple[str, str] | None) -> Detection:
    if found is None:
        return detection
    variant, says = found
    return detection._replace(
        variant=variant, evidence=f"{detection.evidence}; {variant} because of {says}"
    )


@cache
def _fields(what: str, kind: str) -> tuple[str, ...]:
    return tuple(_data("signatures.json")["header_fields"][what][kind])


_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _plain(text: str) -> str:
    """`dreamshaperXL_lightningDPM` -> `dreamshaper xl lightning dpm`."""
    return _WORD_START.sub(" ", text.replace("LoRA", "Lora")).lower().replace("_", " ")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:79] + "…")
