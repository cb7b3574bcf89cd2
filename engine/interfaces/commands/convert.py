"""``isoframe convert``: write a model as a unit store."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...request.config import COMPUTE_DTYPES, PRECISIONS, EngineConfig, LoraStrength, check_choice
from ...request.fields import needed, setting
from .terminal import options
from .terminal.command import command
from .terminal.printing import echo
from .terminal.progress import conversion_bar

if TYPE_CHECKING:
    from ...weights.store import Store


@command(config=("cache_dir", "local_files_only"))
def convert(
    config: EngineConfig,
    source: str = needed("demo, a Hub id, a model folder or a .safetensors file.", option="SRC"),
    destination: Path | None = setting(
        None, "Folder of the store (default: where the engine looks for it).", option="DST"
    ),
    precision: str = setting("int8", f"Of the blocks' weights: {', '.join(PRECISIONS)}.", panel=None),
    compute_dtype: str = setting(
        "auto",
        f"Of the activations: {', '.join(COMPUTE_DTYPES)} (auto: bf16; without [DST] as this machine computes).",
        panel=None,
    ),
    lora: list[str] | None = setting(
        None, "Work a LoRA into the weights for good; repeatable. Without it, generate takes LoRAs too.",
        metavar="FILE[:STRENGTH]", panel=None,
    ),
    verify: bool = setting(
        False, "SRC is a store: compare every byte with the hashes of its manifest, exit 1 if one differs.", panel=None
    ),
    report: bool = setting(
        False, "List every weight: its signal to quantization noise in dB, or that it was kept.", panel=None
    ),
    quiet: bool = options.QUIET,
) -> None:  # fmt: skip
    """Write a model in the order and the precision in which it is used: loads faster, runs in less memory.

    The source stays as it is. A conversion that was stopped goes on where it stopped when it is run again.
    """
    if verify:
        _verify(source, destination, quiet)
        return
    check_choice("--precision", precision, PRECISIONS)
    check_choice("--compute-dtype", compute_dtype, COMPUTE_DTYPES)
    loras = _parse_loras(lora, destination)
    store = _convert(source, destination, precision, compute_dtype, loras, config, quiet)
    if report:
        _print_report(store)
    if not quiet:
        echo(f"{store.folder}: {store.name} in {precision}, {store.num_bytes / 2**30:.2f} GiB")


def _verify(source: str, destination: Path | None, is_quiet: bool) -> None:
    from ...weights.store import open_store

    if destination is not None:
        raise ConfigError(f"--verify takes one store, got {source} and {destination}")
    store = open_store(source)
    with conversion_bar(is_quiet=is_quiet) as on_progress:
        store.verify(on_progress)
    if not is_quiet:
        num_blobs = len(store.units) + len(store.parameters)
        echo(
            f"{store.folder}: {num_blobs} tensors, {store.num_bytes / 2**30:.2f} GiB, all as they were written"
        )


def _parse_loras(texts: list[str] | None, destination: Path | None) -> tuple[LoraStrength, ...]:
    loras = options.parse_loras(texts)
    if any(lora.sections is not None for lora in loras):
        raise ConfigError(
            f"--lora of convert must be FILE:STRENGTH without sections, got {', '.join(texts or ())}"
        )
    if loras and destination is None:
        raise ConfigError(
            "--lora needs a folder [DST]: where the engine looks, it expects the model without LoRAs"
        )
    return loras


def _convert(
    source: str,
    destination: Path | None,
    precision: str,
    compute_dtype: str,
    loras: tuple[LoraStrength, ...],
    config: EngineConfig,
    is_quiet: bool,
) -> "Store":
    import dataclasses

    import torch

    from ....quant import DENSE_DTYPES, make_format
    from ...checkpoints.lora import read_lora
    from ...companions.components import find_components
    from ...families.opening import open_transformer
    from ...weights.conversion import cached_store
    from ...weights.conversion import convert as convert_model
    from ...weights.merged_checkpoint import checkpoint_layers, merged_checkpoint

    is_for_here = destination is None and compute_dtype == "auto" and not torch.cuda.is_available()
    auto = torch.float32 if is_for_here else torch.bfloat16
    weight_format = make_format(precision, DENSE_DTYPES.get(compute_dtype, auto))
    components = find_components(source, local_files_only=config.local_files_only)
    opened = open_transformer(components.transformer, local_files_only=config.local_files_only)
    checkpoint = dataclasses.replace(opened, name=components.name)
    if loras:
        layers, aliases = checkpoint_layers(checkpoint), components.family.lora_aliases()
        active = [(read_lora(lora.source, layers, aliases), lora.strength) for lora in loras]
        checkpoint = merged_checkpoint(checkpoint, active)
    with conversion_bar(is_quiet=is_quiet) as on_progress:
        if destination is None:
            return cached_store(checkpoint, weight_format, config.cache_path(), on_progress)
        return convert_model(checkpoint, weight_format, destination, on_progress)


def _print_report(store: "Store") -> None:
    """Every weight of the model, converted or kept: name, how it is stored, signal to noise."""
    rows = [
        (name, store.weight_format.name, "exact" if decibel is None else f"{decibel:.1f} dB")
        for name, decibel in store.sqnr.items()
    ]
    rows += [(name, blob.entry.dtype.lower(), "kept") for name, blob in store.parameters.items()]
    width = max(len(name) for name, _, _ in rows)
    for name, kind, noise in rows:
        echo(f"{name:{width}}  {kind:11}  {noise}")
