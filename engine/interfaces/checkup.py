"""What of this machine helps or hinders a video: findings, each with its remedy."""

import contextlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from ...kernels import HAS_TRITON
from ...kernels.launching.probe import find_triton_failure
from ..errors import BudgetError, DeviceError, InputError
from ..families.registry import PUBLISHED_NAME
from ..files import ABANDONED_SECONDS, TEMPORARY_FOLDER, remove_orphans
from ..generation.model_lookup import find_model
from ..model.attention_backends import AttentionShape, device_capability
from ..model.attention_choice import CANDIDATES, AttentionChoice
from ..output_paths import check_folder
from ..planning.budget import make_plan
from ..planning.machine import Machine, this_machine
from ..planning.nvml import CardState, read_card
from ..planning.plan import Plan
from ..planning.planned_job import PlannedJob
from ..request.config import Request, SamplingConfig

Status = Literal["good", "note", "problem"]
_GIB = 2**30
_LEAST_CAPABILITY = 80
# What the published model needs beside its budget: 26 GB of weights on the disk, with its encoders about 44.
_NEEDED_DISK = 50 * _GIB
# Below it, reading the published model's shards pushes other programs out.
_GOOD_RAM = 16 * _GIB
_NO_CARD = (
    "the demo model runs on the CPU; the published models need an NVIDIA card of the RTX 30 series or later"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: "problem" means that a job on this device fails or crawls.
        text: what was found.
        remedy: what to do about it; empty if nothing.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""


def _judged(name: str, text: str, is_good: bool, remedy: str, otherwise: Status = "note") -> Check:
    """A finding that is good or has a remedy; ``otherwise`` is its status where it is not good."""
    return Check(name, "good", text) if is_good else Check(name, otherwise, text, remedy)


def examine(device: torch.device, cache_dir: Path) -> Iterator[Check]:
    """Look at everything, the quick things first.

    Args:
        device: where jobs would run.
        cache_dir: folder of the engine's caches.
    """
    yield check_software()
    state = None
    if device.type == "cuda":
        state = read_card(device)
        yield check_arch(
            torch.cuda.get_device_name(device), device_capability(device), torch.cuda.get_arch_list()
        )
        yield check_driver(state, torch.version.cuda)
        yield check_link(state)
        yield check_pace(state)
        yield check_device_memory(*torch.cuda.mem_get_info(device))
    else:
        yield check_missing_card(torch.version.cuda, has_driver=shutil.which("nvidia-smi") is not None)
    yield check_triton(device)
    yield from check_attention(device, cache_dir)
    yield check_encoder()
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    yield check_host_memory(memory.total, memory.available)
    yield check_page_file(memory.total, swap.total)
    for name, folder in (("disk of the models", hub_folder()), ("disk of the caches", cache_dir)):
        yield check_disk(name, folder)
    machine = this_machine(device)
    yield from check_speed(machine) if device.type == "cuda" else [check_demo_speed(machine)]


def check_software() -> Check:
    """Versions of what videos are made with."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()} {platform.release()}"
    return Check("software", "good", versions)


def check_missing_card(torch_cuda: str | None, *, has_driver: bool) -> Check:
    """Why torch sees no CUDA device.

    Args:
        torch_cuda: CUDA version that torch is built with; None for a build without.
        has_driver: an NVIDIA driver is installed.
    """
    if not has_driver:
        return Check("card", "note", "no CUDA device", _NO_CARD)
    fault = f"{torch.__version__} is a build for the CPU only"
    remedy = "install a build of torch with CUDA 12.8 or later; pytorch.org shows the command"
    if torch_cuda is not None:
        fault = f"(CUDA {torch_cuda}) finds no device"
        remedy = "run nvidia-smi: if it fails, install the driver again; see that CUDA_VISIBLE_DEVICES is not empty"
    return Check("card", "problem", f"an NVIDIA driver is installed, but torch {fault}", remedy)


def check_arch(name: str, capability: int, arch_list: list[str]) -> Check:
    """Whether this build of torch has kernels for the card, and the card the arithmetic of ours.

    Args:
        name: of the card.
        capability: 10 * major + minor.
        arch_list: what torch was built for, such as "sm_86" or "compute_90".
    """
    text = f"{name}, compute capability {capability // 10}.{capability % 10}"
    if capability < _LEAST_CAPABILITY:
        remedy = "use --device cpu with the demo model, or a card of the RTX 30 series or later"
        return Check("card", "problem", f"{text}, below 8.0", remedy)
    is_known = any(_runs_on(entry, capability) for entry in arch_list)
    if not is_known:
        text += f": this torch has kernels for {', '.join(arch_list) or 'no card'} only"
    remedy = "install a build of torch for a newer CUDA (12.8 or later for the RTX 50 series); pytorch.org shows the command"
    return _judged("card", text, is_known, remedy, "problem")


def _runs_on(entry: str, capability: int) -> bool:
    """Binary code runs on its own major version from its minor one on; PTX on everything later."""
    kind, _, digits = entry.partition("_")
    number = int("".join(character for character in digits if character.isdigit()) or 0)
    if kind == "compute":
        return number <= capability
    return number // 10 == capability // 10 and number <= capability


def check_driver(state: CardState | None, torch_cuda: str | None) -> Check:
    """Whether the driver is new enough for the CUDA that torch is built with."""
    if state is None or state.driver is None:
        remedy = "pip install nvidia-ml-py to see driver, PCIe link, power and clocks"
        return Check("driver", "note", "unknown", remedy)
    major = int((torch_cuda or "0").partition(".")[0])
    newest = (state.cuda or 0) // 1000
    text = f"{state.driver}, runs CUDA up to {newest}.{(state.cuda or 0) % 1000 // 10}; torch has CUDA {torch_cuda}"
    remedy = "install a newer driver from nvidia.com, or an older torch"
    return _judged("driver", text, newest >= major, remedy, "problem")


def check_link(state: CardState | None) -> Check:
    """Width of the PCIe link: weights that do not fit the card pass through it in every step."""
    if state is None or state.pcie_width is None or state.max_pcie_width is None:
        return Check("PCIe link", "note", "unknown", _ask_driver(state))
    text = (
        f"generation {state.pcie_generation} x{state.pcie_width} now, generation {state.max_pcie_generation} "
        f"x{state.max_pcie_width} at best (a card at rest lowers the generation)"
    )
    remedy = "the card uses a part of its lanes: try another slot, and look for an M.2 disk that shares them"
    return _judged("PCIe link", text, state.pcie_width >= state.max_pcie_width, remedy)


def check_pace(state: CardState | None) -> Check:
    """Power and clocks, and what holds them back."""
    if state is None or state.power_limit is None:
        return Check("power", "note", "unknown", _ask_driver(state))
    text = f"limit {state.power_limit / 1e3:.0f} W, clock {state.clock} of {state.max_clock} MHz"
    if state.throttles:
        text += f", slowed down by {', '.join(state.throttles)}"
    remedy = "plug the laptop in, see that fans turn, or raise the power limit"
    return _judged("power", text, not state.throttles, remedy)


def _ask_driver(state: CardState | None) -> str:
    if state is None:
        return "pip install nvidia-ml-py to see it; if that is there, see that nvidia-smi works"
    return "this driver does not tell; nvidia-smi -q may"


def check_device_memory(free: int, total: int) -> Check:
    """Memory that other programs leave."""
    text = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    remedy = "close what else uses the card (nvidia-smi lists it): browsers, games, other models"
    return _judged("card memory", text, free >= 0.8 * total, remedy)


def check_triton(device: torch.device) -> Check:
    """Compile a kernel, and run it on a CUDA device."""
    is_cuda = device.type == "cuda"
    failure = find_triton_failure(device, device_capability(device) if is_cuda else _LEAST_CAPABILITY)
    if failure is None:
        what = "compiles and runs a kernel" if is_cuda else "compiles a kernel; without a card it cannot run"
        return Check("Triton", "good", what)
    install = "pip install triton (Linux) or pip install triton-windows (Windows)"
    broken = "install it again together with torch, and a C compiler (on Linux: gcc); then clear ~/.triton"
    # The CPU has paths of its own.
    return Check("Triton", "problem" if is_cuda else "note", failure, broken if HAS_TRITON else install)


def check_attention(device: torch.device, cache_dir: Path) -> Iterator[Check]:
    """Which attention "auto" takes at the shape of the published model, and what keeps the others away."""
    shape = _published_attention(device)
    obstacles = {name: candidate.obstacle(shape, device) for name, candidate in CANDIDATES.items()}
    runs, is_cuda = [name for name, obstacle in obstacles.items() if obstacle is None], device.type == "cuda"
    try:
        choice = AttentionChoice(name="auto", precision="bf16", device=device, cache_dir=cache_dir)
        chosen = choice.make(shape).name
    except DeviceError as error:
        yield Check("attention", "problem", str(error), "pip install flash-attn or xformers")
        return
    why = "the fastest of those that run exactly, measured" if is_cuda else "torch's own, on the CPU"
    yield Check("attention", "good", f"{chosen}: {why}; runs here: {', '.join(runs)}")
    for name, obstacle in obstacles.items():
        if obstacle is not None and is_cuda:
            reason, _, remedy = obstacle.partition(": ")
            yield Check(f"attention {name}", "note", reason, remedy)


def check_encoder() -> Check:
    """Whether videos can be written."""
    from ..media.codecs import VideoFormat

    try:
        VideoFormat(height=16, width=16, fps=30, crf=16).open_encoder()
    except (ImportError, DeviceError) as error:
        return Check("video", "problem", str(error), "pip install --force-reinstall av")
    return Check("video", "good", "H.264 can be encoded")


def check_host_memory(total: int, available: int) -> Check:
    """RAM: the wall that most people hit first."""
    text = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    remedy = "enough for the demo; for the published model close other programs, and see isoframe plan --ram"
    return _judged("RAM", text, available >= _GOOD_RAM, remedy)


def check_page_file(total_ram: int, total_swap: int) -> Check:
    """Swap or page file: without one, a moment's lack of memory kills the process."""
    remedy = "add one as large as the RAM: on Windows a system-managed page file, on Linux a swap file"
    is_good = total_swap > 0 or total_ram >= 4 * _GOOD_RAM
    return _judged("page file", f"{total_swap / _GIB:.1f} GiB" if is_good else "none", is_good, remedy)


def check_disk(name: str, folder: Path) -> Check:
    """Room where files will be put, and whether they can be."""
    is_of_models = name == "disk of the models"
    try:
        check_folder(name, folder)
    except InputError as error:
        remedy = (
            "set HF_HOME to another folder; what is there can be read"
            if is_of_models
            else "choose another --cache-dir"
        )
        return Check(name, "note" if is_of_models else "problem", str(error), remedy)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / _GIB:.0f} GiB free in {folder}"
    is_good = free >= _NEEDED_DISK or not is_of_models
    needed = f"the published model needs about {_NEEDED_DISK / _GIB:.0f} GiB: set HF_HOME to a folder on a larger disk"
    return _judged(name, text, is_good, needed)


def check_speed(machine: Machine) -> Iterator[Check]:
    """What the published model should do on this card, by the planner; a measurement far above means a fault."""
    for precision in ("bf16", "int8"):
        name = f"expected in {precision}"
        try:
            plan = _plan_of(PUBLISHED_NAME, precision, machine)
        except BudgetError as error:
            yield Check(name, "note", str(error), "see isoframe plan")
            continue
        guess = " (a cautious guess: this card is not in the table)" if machine.card.is_estimate else ""
        pace = f"{plan.seconds_per_step:.2f} s/it, {plan.seconds_per_frame:.2f} s/frame"
        text = f"{pace} at {plan.size[0]}x{plan.size[1]}, limited by {plan.bottleneck}{guess}"
        yield Check(name, "good", text)


def check_demo_speed(machine: Machine) -> Check:
    """What the demo should do on the CPU: all that runs there in reasonable time."""
    name = "expected of the demo"
    try:
        plan = _plan_of("demo", "fp32", machine)
    except BudgetError as error:
        return Check(name, "problem", str(error), "close other programs")
    pace = f"about {plan.seconds_per_step:.2f} s/it on the CPU at {plan.size[0]}x{plan.size[1]}"
    more = "a cautious guess by the number of cores; isoframe plan --card tells of a card"
    return Check(name, "good", f"{pace}, {more}")


def _plan_of(model: str, precision: str, machine: Machine) -> Plan:
    """The plan of a usual video of a known model at its largest usual size."""
    found = find_model(model)
    sampling = Request(image="", prompt="").sampling(found.order)
    job = PlannedJob(shapes=found.shapes, sampling=sampling, size=found.buckets[0], precision=precision)
    return make_plan(job, machine)


def hub_folder() -> Path:
    """Where downloaded models are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _published_attention(device: torch.device) -> AttentionShape:
    """The joint attention of the published model at its largest usual size."""
    found = find_model(PUBLISHED_NAME)
    config = found.shapes.transformer
    return AttentionShape(
        num_tokens=found.shapes.sequence(SamplingConfig(num_sections=1), found.buckets[0]).total,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )


def remove_leftovers(cache_dir: Path) -> Iterator[Path]:
    """Remove what killed runs of this user left in ``cache_dir``, the working folder and that for temporary files."""
    temporary = Path(tempfile.gettempdir())
    for folder in (temporary, Path.cwd(), *(Path(path) for path, _, _ in os.walk(cache_dir))):
        yield from remove_orphans(folder)
    for path in temporary.glob(f"{TEMPORARY_FOLDER}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if is_own and stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path)
                yield path
