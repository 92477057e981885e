"""Model files -> MODEL, CLIP, VAE and what they are."""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import host
from ..catalog import (
    MOST_BY_NAME,
    Catalog,
    Detection,
    SafetensorsHeader,
    detect_checkpoint,
    detect_model,
    family,
    family_of_comfy_class,
    named_size,
    named_steps,
    read_header,
    trained_size,
)
from ..errors import ModelFileError, SettingError
from ..plan import ChosenModel, FileRef, MemoryPlan, ModelInfo, ModelPart, Notice
from .allocation import Allocation, PartSize, allocate, is_quantized, part_sizes, table
from .formats import check_formats, has_marks, layer_formats, with_formats
from .kept import KeptWeights, Makers
from .quantization import becomes_int4
from .residency import FileStamp, ModelKey, ModelPool, file_stamp
from .resources import FreeMemory
from .streaming import stream

log = logging.getLogger(__name__)

MODEL_INFO = "model_info"
"""Attachment key on MODEL: the ModelInfo it was loaded with. Clones carry it along."""

PART = "model_part"
"""Attachment key on the patchers of CLIP and VAE: the ModelPart they were loaded as."""

CHANGES = "changes"
"""Attachment key on the patchers of MODEL and CLIP: `host.other_changes` right after loading."""

OWN_PATCHES = "own_patches"
"""Attachment key on the patchers of MODEL and CLIP: how many of their patches this pack added."""

MODEL_FOLDERS = ("checkpoints", "diffusion_models")
"""Folder keys of ComfyUI that hold what HubModelLoader loads."""

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl"})


_SURE = 0.9  # what the file itself says that well, no hub is asked about


class ModelChoice(NamedTuple):
    """Which files to load."""

    model: FileRef
    """A checkpoint, or a diffusion model alone."""
    text_encoders: tuple[FileRef, ...] = ()
    """None: what the checkpoint holds."""
    vae: FileRef | None = None
    """None: what the checkpoint holds."""
    variant: str | None = None
    """The user's word for the variant; empty for "none"; None to detect it."""
    chosen: ChosenModel | None = None
    """Why the pack chose `model`; None for the user's choice."""


class LoadedModel(NamedTuple):
    """A loaded model and its description."""

    model: Any
    clip: Any
    vae: Any
    info: ModelInfo
    report: str
    """What was loaded in which data type, and what came from the pool."""


def choose_model(
    *,
    model: str,
    text_encoders: Sequence[str] = (),
    vae: str | None = None,
    variant: str | None = None,
    installed: Callable[[str], Sequence[str]],
) -> ModelChoice:
    """The files a user's choice means.

    Args:
        model: `checkpoints/NAME` or `diffusion_models/NAME`; a bare NAME is looked for in both.
        installed: names of the safetensors files in a model folder, with forward slashes.

    Raises:
        ModelFileError: no such file, or not a safetensors file.
    """
    if not model:
        raise ModelFileError(
            "No model is chosen. Put a checkpoint into ComfyUI's models/checkpoints folder, "
            "reload the page, and choose it in HubModelLoader."
        )
    known = {
        f"{folder}/{name}": FileRef(folder=folder, name=name)
        for folder in MODEL_FOLDERS
        for name in installed(folder)
    }
    wanted = model.replace("\\", "/")
    matches = (
        [known[wanted]] if wanted in known else [f for f in known.values() if f.name == wanted]
    )
    if len(matches) != 1:
        raise _no_such_model(model, matches, known)
    return ModelChoice(matches[0], _encoders(text_encoders), _vae(vae), variant)


def choose_fetched(
    files: Sequence[FileRef],
    *,
    text_encoders: Sequence[str] = (),
    vae: str | None = None,
    variant: str | None = None,
) -> ModelChoice:
    """The files a user's references mean, together with what was chosen from the lists.

    Args:
        files: what the references gave, in their order; the folder says what each is.
        text_encoders, vae, variant: as `choose_model` takes them.

    Raises:
        SettingError: there is no model among the files or more than one, or a text encoder or
            VAE was chosen twice.
    """
    by_folder: dict[str, list[FileRef]] = {}
    for file in dict.fromkeys(files):
        role = "model" if file.folder in MODEL_FOLDERS else file.folder
        by_folder.setdefault(role, []).append(file)
    models = by_folder.get("model", [])
    if len(models) != 1:
        named = ", ".join(file.name for file in models) or "none"
        raise SettingError(
            "reference must name one checkpoint or diffusion model; text encoders and a VAE may "
            f"stand on lines of their own. It names {len(models)} models: {named}."
        )
    encoders, vaes = by_folder.get("text_encoders", []), by_folder.get("vae", [])
    for role, own, fetched, most in (
        ("text encoders", text_encoders, encoders, 3),
        ("VAE", [vae] if vae else [], vaes, 1),
    ):
        if (own and fetched) or len(fetched) > most:
            names = ", ".join([*own, *(file.name for file in fetched)])
            raise SettingError(
                f"More {role} are chosen than can be used: {names}. Take some out of reference, or "
                "set the list to automatic."
            )
    return ModelChoice(
        models[0],
        tuple(encoders) or _encoders(text_encoders),
        vaes[0] if vaes else _vae(vae),
        variant,
    )


def _encoders(names: Sequence[str]) -> tuple[FileRef, ...]:
    return tuple(FileRef(folder="text_encoders", name=name) for name in names)


def _vae(name: str | None) -> FileRef | None:
    return FileRef(folder="vae", name=name) if name else None


def _no_such_model(
    model: str, matches: Sequence[FileRef], known: Mapping[str, FileRef]
) -> ModelFileError:
    if matches:
        return ModelFileError(
            f"{model} is in more than one folder. Write checkpoints/{model} or "
            f"diffusion_models/{model}."
        )
    if Path(model).suffix.lower() in PICKLE_SUFFIXES:
        return ModelFileError(
            f"{model} is not a safetensors file. Only safetensors files are loaded, because other "
            "formats can run code. Convert it, or use a stock loader node."
        )
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ModelFileError(
        f"Model {model} is not in ComfyUI's checkpoints or diffusion_models folders "
        f"({len(known)} safetensors files there).{hint}"
    )


def missing_parts(path: Path, given: Mapping[str, bool]) -> str:
    """What a checkpoint lacks to make pictures alone, as a sentence; empty when it lacks nothing.

    Args:
        given: by role (text_encoder, vae), whether it comes from another file.

    Raises:
        ModelFileError: the file cannot be read.
    """
    roles = {part.role for part in part_sizes([(None, read_header(path))])}
    lacks = [
        role.replace("_", " ")
        for role in ("diffusion_model", "text_encoder", "vae")
        if role not in roles and not given.get(role)
    ]
    return f"The file holds no {' and no '.join(lacks)}." if lacks else ""


def load_model(
    choice: ModelChoice,
    catalog: Catalog,
    plan: MemoryPlan,
    *,
    pool: ModelPool,
    kept_weights: KeptWeights,
    free: Callable[[], FreeMemory],
    show: Callable[[str], None],
    short: str | None = None,
) -> LoadedModel:
    """Load a model by ComfyUI's own loaders, in the data type that the memory plan wants.

    Headers are read first, so that a truncated or foreign file is refused before anything large
    is loaded. What the pool has of the files is not read again.

    Args:
        pool: lends what it has, and keeps what is loaded.
        kept_weights: has weights that were made at int8 or int4 before, and keeps what is made.
        free: the memory that can be had now; asked once, before loading.
        show: shows the allocation table, before loading.
        short: why memory is short for this model, where that is known from before; the plan's
            `auto` is then int8, if the file can be loaded so.

    Raises:
        ModelFileError: a file is missing, damaged, or not what it is used as.
        SettingError: the plan's data type does not work with this file or on this device.
    """
    paths = {file: catalog.path(file) for file in _files(choice)}
    stamps = {file: file_stamp(path) for file, path in paths.items()}
    headers = {file: _header(stamp) for file, stamp in stamps.items()}
    for file, header in headers.items():
        layers = layer_formats(paths[file], header)
        known = host.quantized_formats(in_tensors=has_marks(header))
        check_formats(file.name, header, layers, known)
        headers[file] = with_formats(header, layers)
    header = headers[choice.model]
    detection, notices = _detect(header, choice, catalog)
    supported: Sequence[str] = host.weight_dtypes()
    if _renamed(header, detection):
        if plan.weight_dtype in _PACKED:
            raise SettingError(
                f"The weights of {choice.model.name} have diffusers' names, which ComfyUI "
                f"translates while loading; {plan.weight_dtype} cannot be made from them. Set "
                "weight_dtype to auto in MemoryStrategy, or load a single-file version."
            )
        supported = [name for name in supported if name not in _PACKED]
    whole = _key(choice.model.folder, None, stamps[choice.model])
    if plan.weight_dtype == "auto" and pool.has(whole) and not short:
        # Memory is not short for a model that is in memory.
        supported = [name for name in supported if name != "int8"]
    quantized = any(map(is_quantized, headers.values()))
    if short and not quantized and "int8" in supported:
        plan = plan.model_copy(update={"weight_dtype": "int8"})
        notices.append(_loaded_at_int8(choice.model.name, f"because {short}."))
    room = free()
    if plan.strategy == "AUTO" and pool.has(whole):
        room = room._replace(ram=max(room.ram, plan.ram_total_bytes))

    def sizes(*files: FileRef) -> tuple[PartSize, ...]:
        return part_sizes(
            [(_role(file), headers[file]) for file in files],
            host.vae_dtype(),
            stay_float32=host.float32_beside_int8(),
        )

    allocation = allocate(
        plan,
        sizes(*headers),
        room,
        name=choice.model.name,
        quantized=quantized,
        supported=supported,
    )
    show(table(allocation))
    dtype = None if allocation.dtype in _PACKED else allocation.dtype
    notices += [_conceded(choice.model.name, allocation, reason) for reason in allocation.reasons]

    in_file = allocation.strategy == "DISK_OFFLOAD" and not plan.dynamic_vram
    stored = {row.role: row.dtype for row in allocation.rows}
    kept: list[str] = []
    told: list[str] = []

    def lend(
        role: str, files: Sequence[FileRef], load: Callable[[Sequence[host.LazyFile]], Any]
    ) -> host.LoadedModel:
        def loaded() -> host.KeptModel:
            host.check_interrupt()
            if role != "vae" and allocation.dtype in _PACKED:
                with kept_weights.makers(
                    [stamps[file] for file in files],
                    [name for file in files for name in headers[file].tensors],
                    needs,
                    told.append,
                    _pack_int4 if allocation.dtype == "int4" else None,
                ) as makers:
                    return host.KeptModel(
                        load([_file_to_quantize(paths[file], makers) for file in files])
                    )
            if role != "vae" and in_file:
                return host.KeptModel(load([_mapped_file(paths[file], stored) for file in files]))
            return host.KeptModel(load(()))

        needs = sum(
            0 if in_file and part.role != "vae" else _needed(part, allocation.dtype, plan)
            for part in sizes(*files)
        )
        # int8 is for text encoders too, the other data types for the diffusion model alone.
        main = role in MODEL_FOLDERS or (allocation.dtype in _PACKED and role != "vae")
        form = "in its file" if in_file and role != "vae" else allocation.dtype if main else None
        key = _key(role, form, *(stamps[one] for one in files))
        if pool.has(key):
            kept.extend(file.name for file in files)
        return pool.lend(key, needs, loaded)

    def load_main(lazy: Sequence[host.LazyFile]) -> host.LoadedModel:
        path, file = paths[choice.model], lazy[0] if lazy else None
        if choice.model.folder == "checkpoints":
            return host.load_checkpoint(path, dtype=dtype, lazy=file)
        model = host.load_diffusion_model(path, dtype=dtype, lazy=file)
        return host.LoadedModel(model, None, None)

    model, clip, vae = lend(choice.model.folder, [choice.model], load_main)
    if detection.family == "unknown" or detection.confidence <= MOST_BY_NAME:
        # ComfyUI may know a family that our table does not separate by tensors.
        loaded_as = f"ComfyUI loaded it as {host.comfy_class(model)}"
        known = family_of_comfy_class(host.comfy_class(model))
        if known != "unknown":
            detection = detection._replace(family=known, confidence=0.5, evidence=loaded_as)
        elif detection.family == "unknown":
            detection = detection._replace(confidence=0.0, evidence=loaded_as)
    if choice.text_encoders:
        kind = family(detection.family).text_encoder_type
        encoders = [paths[file] for file in choice.text_encoders]
        clip = lend(
            f"text encoders of {kind}",
            choice.text_encoders,
            lambda lazy: host.LoadedModel(
                None, host.load_text_encoders(encoders, kind, lazy=lazy), None
            ),
        ).clip
    if choice.vae is not None:
        path = paths[choice.vae]
        vae = lend(
            "vae", [choice.vae], lambda _: host.LoadedModel(None, None, host.load_vae(path))
        ).vae

    main = (choice.model,)
    parts = [_part("diffusion_model", main, host.diffusion_module(model))]
    if clip is not None:
        files = choice.text_encoders or main
        parts.append(_part("text_encoder", files, host.text_encoder_module(clip)))
        host.attach(clip.patcher, PART, parts[-1])
    if vae is not None:
        files = (choice.vae,) if choice.vae is not None else main
        parts.append(_part("vae", files, host.vae_module(vae)))
        host.attach(vae.patcher, PART, parts[-1])
    info = ModelInfo(
        name=choice.model.name,
        family=detection.family,
        variant=detection.variant,
        family_confidence=detection.confidence,
        evidence=detection.evidence,
        nearest=detection.nearest if detection.family == "unknown" else None,
        trained_size=trained_size(header) or named_size(choice.model.name),
        trained_steps=named_steps(choice.model.name),
        parts=tuple(parts),
        weight_dtype=allocation.weight_dtype,
        choice=choice.chosen,
        notices=tuple(notices),
    )
    host.attach(model, MODEL_INFO, info)
    host.attach(model, CHANGES, host.other_changes(model))
    if clip is not None:
        host.attach(clip.patcher, CHANGES, host.other_changes(clip.patcher))
    lines = [table(allocation), f"From the model pool: {', '.join(kept) or 'nothing'}.", *told]
    for line in told:
        log.info("Intelligent Generation: %s", line)
    return LoadedModel(model, clip, vae, info, "\n".join(lines))


def info_of(model: Any) -> ModelInfo:
    """A ModelInfo as it is, or that of a MODEL."""
    return model if isinstance(model, ModelInfo) else describe_model(model)


def describe_model(model: Any, clip: Any = None, vae: Any = None) -> ModelInfo:
    """ModelInfo of any MODEL: what our loader attached to it, else what ComfyUI detected.

    With CLIP and VAE the parts are those that are really wired, wherever they came from. Changes
    by other nodes (LoRAs, merges, options) are counted and told: they stay, and the record of a
    generation cannot name them.
    """
    info: ModelInfo | None = host.attached(model, MODEL_INFO)
    if info is None:
        comfy_class = host.comfy_class(model)
        known = family_of_comfy_class(comfy_class)
        info = ModelInfo(
            name="MODEL from another node",
            family=known,
            family_confidence=0.0 if known == "unknown" else 0.8,
            evidence=f"ComfyUI loaded it as {comfy_class}",
            parts=(_part("diffusion_model", (), host.diffusion_module(model)),),
        )
    carried = _foreign_changes(model)
    parts = info.parts
    if clip is not None:
        carried += _foreign_changes(clip.patcher) + host.clip_changes(clip)
        part = host.attached(clip.patcher, PART)
        parts = _with_part(parts, part or _part("text_encoder", (), host.text_encoder_module(clip)))
    if vae is not None:
        part = host.attached(vae.patcher, PART)
        parts = _with_part(parts, part or _part("vae", (), host.vae_module(vae)))
    notices = info.notices
    if carried:
        message = (
            f"MODEL or CLIP already carries {carried} changes (a LoRA, a merge, an option) from "
            "other nodes. They stay. The record cannot name them: to repeat this image, use the "
            "workflow in the PNG."
        )
        notices = (
            *notices,
            Notice(level="info", code="model_carries_patches", message=message),
        )
    return info.model_copy(update={"parts": parts, "carried_patches": carried, "notices": notices})


def _foreign_changes(patcher: Any) -> int:
    patches = host.patch_count(patcher) - (host.attached(patcher, OWN_PATCHES) or 0)
    others = host.other_changes(patcher) - (host.attached(patcher, CHANGES) or 0)
    return max(0, patches) + max(0, others)


def _with_part(parts: tuple[ModelPart, ...], part: ModelPart) -> tuple[ModelPart, ...]:
    return (*(other for other in parts if other.role != part.role), part)


def _role(file: FileRef) -> Any:
    return {"checkpoints": None, "diffusion_models": "diffusion_model", "vae": "vae"}.get(
        file.folder, "text_encoder"
    )


@functools.lru_cache(maxsize=16)
def _header(stamp: FileStamp) -> SafetensorsHeader:
    return read_header(Path(stamp.path))


def _key(role: str, dtype: str | None, *stamps: FileStamp) -> ModelKey:
    return ModelKey(stamps, (role, dtype or "auto"))


def _needed(part: PartSize, dtype: str | None, plan: MemoryPlan) -> int:
    if dtype == "int4":
        return part.int4_bytes
    if dtype == "int8":
        return part.int8_bytes
    return part.cpu_bytes if plan.device.kind == "cpu" else part.bytes


_PACKED = ("int8", "int4")
"""Data types that are made layer by layer while a file is read."""


def _file_to_quantize(path: Path, makers: Makers) -> host.FileToQuantize:
    file = stream(path)
    return host.FileToQuantize(file.tensors, file.metadata, makers.int8, file.release, makers.int4)


def _pack_int4(part: str, name: str, weight: Any) -> Mapping[str, Any] | None:
    if not becomes_int4(part, name, tuple(weight.shape)):
        return None
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return None
    return host.pack_int4(weight)


def _renamed(header: SafetensorsHeader, detection: Detection) -> bool:
    """Whether ComfyUI translates the names of a diffusion model's tensors from diffusers'."""
    return detection.family == "unknown" and any(map(_DIFFUSERS_NAME, header.tensors))


_DIFFUSERS_NAME = re.compile(
    r"(joint_transformer_blocks|single_transformer_blocks|transformer_blocks|down_blocks|up_blocks)"
    r"\.\d+\."
).match


def _mapped_file(path: Path, dtypes: Mapping[str, str]) -> host.MappedFile:
    file = stream(path)
    return host.MappedFile(file.tensors, file.metadata, dtypes, file.release)


def _conceded(name: str, allocation: Allocation, reason: str) -> Notice:
    if allocation.dtype == "int8":
        return _loaded_at_int8(name, reason.removeprefix("At int8, "))
    message = (
        f"{name}: {reason} Images are the same, and take longer. To read the weights into RAM "
        "all the same, choose another strategy than AUTO in MemoryStrategy."
    )
    return Notice(level="info", code="weights_stay_in_file", message=message)


def _loaded_at_int8(name: str, because: str) -> Notice:
    message = (
        f"{name} was loaded at int8, {because} Images differ slightly from those at full "
        "precision. To keep it as it is, set weight_dtype in MemoryStrategy."
    )
    return Notice(level="info", code="loaded_at_int8", message=message)


def _files(choice: ModelChoice) -> list[FileRef]:
    files = [choice.model, *choice.text_encoders]
    return files if choice.vae is None else [*files, choice.vae]


def _detect(
    header: SafetensorsHeader, choice: ModelChoice, catalog: Catalog
) -> tuple[Detection, list[Notice]]:
    found = _with_hubs(detect_model(header, choice.model.name), choice.model, catalog)
    if choice.variant is not None:
        variant = choice.variant or None
        return found._replace(variant=variant, evidence=f"{found.evidence}; variant set by you"), []
    if found.variant is None or found.variant == detect_checkpoint(header).variant:
        return found, []
    message = (
        f"Nothing in {choice.model.name} says that it is {found.variant!r}, only its name; steps "
        "and CFG follow it. If the name is wrong, set variant to what it is."
    )
    return found, [Notice(level="info", code="variant_from_name", message=message)]


def _with_hubs(found: Detection, file: FileRef, catalog: Catalog) -> Detection:
    if found.confidence >= _SURE:
        return found
    entries = catalog.models(file.folder).entries
    entry = next((entry for entry in entries if entry.file.name == file.name), None)
    if entry is None or entry.family_confidence <= found.confidence:
        return found
    return found._replace(
        family=entry.family, confidence=entry.family_confidence, evidence=entry.evidence
    )


def _part(role: Any, files: tuple[FileRef, ...], module: Any) -> ModelPart:
    count = host.count_weights(module)
    return ModelPart(
        role=role, files=files, dtype=count.dtype, parameters=count.parameters, bytes=count.bytes
    )
