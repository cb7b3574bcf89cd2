"""Every kernel and one whole step on a GPU: right first, then how fast, within a given time.

Each measurement writes its rows when it ends, and one that fails ends no other: a cut or a fault loses one at most.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.errors import DeviceError
from ...engine.model.attention_backends import device_capability
from ...quant import make_format
from ..meters.accuracy import find_errors, relative_rms, run, share_of_flips
from ..meters.fresh_process import first_line, is_lack_of_memory
from ..meters.gpu_timer import Budget, Call, CudaTimer, measure
from ..operations.timed_kernels import KernelCase, Work, count_work, gpu_cases, library_calls
from ..pace.step_check import check_step
from ..records.environment import installed_version, read_environment
from ..records.rows import BenchRow, Gate, append_rows
from ..subjects.single_step import (
    MODEL_13B,
    SHAPE_640X608,
    diffusers_step,
    draw_inputs,
    random_diffusers_model,
    random_step,
)
from .gpu_run import GpuRun
from .job_stages import FIRST_STAGES, LAST_STAGES, run_stages, summary

_GIB = 2**30
_PRODUCT_SIZE = 8192
_COPY_BYTES = _GIB
# Input sets of one case together exceed the L2 cache; one is enough for what is larger by itself.
_ROTATED_BYTES = 2**29
_MAX_SETS = 8
# Largest accepted relative RMS of a step of the 13B model to the first one: rounding, or 8-bit arithmetic in 60 blocks.
_MAX_STEP_ERRORS = {"isoframe bf16": 0.0, "isoframe int8": 0.5, "diffusers bf16": 0.2}


def run_gpu_bench(folder: Path, minutes: float) -> bool:
    """Run all stages on CUDA device 0; whether every kernel and every step was right.

    Args:
        folder: for one file of JSON lines a stage; created.
        minutes: after which nothing new starts.

    Raises:
        DeviceError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise DeviceError("bench gpu needs a CUDA device, found none; bench aot and bench traffic need none")
    device = torch.device("cuda", 0)
    budget = Budget(60 * minutes, time.monotonic)
    bench = GpuRun(device, CudaTimer(), budget, folder, read_environment())
    torch.manual_seed(0)
    with torch.inference_mode():
        ceilings = measure_ceilings(bench)
        time_steps(bench)
    # Before the kernels: references in fp64 take minutes on a card for games.
    run_stages(bench, FIRST_STAGES)
    right: list[KernelCase] = []
    with torch.inference_mode(), bench.contained("kernels"):
        right = check_cases(bench, list(gpu_cases(device_capability(device))))
        time_cases(bench, right, ceilings)
    run_stages(bench, LAST_STAGES)
    time_compiled(bench, right)
    print("\n".join(summary(folder)), flush=True)
    return not bench.wrong


def measure_ceilings(bench: GpuRun) -> dict[str, float]:
    """What this device reaches at most, to compare kernels with: bytes a second of a copy, operations a second of products.

    Products are "bf16" and "int8"; one that the device cannot compute is absent.
    """
    size = _PRODUCT_SIZE

    def draw(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=bench.device)

    ceilings = {}
    makers: dict[str, tuple[str, float, Callable[[], Call]]] = {
        "copy": ("B/s", 2.0 * _COPY_BYTES, lambda: partial(draw(_COPY_BYTES).copy_, draw(_COPY_BYTES))),
        "bf16": ("FLOP/s", 2.0 * size**3, lambda: partial(torch.mm, *(draw(2, size, size).bfloat16()))),
        "int8": (
            "OP/s",
            2.0 * size**3,
            lambda: partial(torch._int_mm, draw(size, size), draw(size, size).t()),
        ),
    }
    for name, (unit, amount, make) in makers.items():
        with bench.contained("ceiling", name, is_ours=False):
            rates = [amount / seconds for seconds in measure(bench.timer, [make()], is_cold=False)]
            ceilings[name] = statistics.median(rates)
            append_rows(bench.folder / "ceilings.jsonl", [bench.row("ceiling", name, unit, rates, "none")])
            print(f"ceiling {name:6} {ceilings[name] / 1e12:8.2f} T{unit}", flush=True)
    return ceilings


def check_cases(bench: GpuRun, cases: Sequence[KernelCase]) -> list[KernelCase]:
    """Compare every kernel with its reference at the model's shapes; the right ones."""
    right: list[KernelCase] = []
    for case in cases:
        if not bench.has_time("accuracy", _title(case)):
            continue
        with bench.contained("accuracy", _title(case)):
            gate = check_case(case, bench.device)
            is_wrong = gate.startswith("FAILED")
            if is_wrong:
                bench.wrong.append(_title(case))
            else:
                right.append(case)
            print(f"{_title(case):56} {gate}", flush=True)
            name, values = f"accuracy-{case.spec.name}", (float(is_wrong),)
            row = bench.row(name, "isoframe", "failures", values, gate, case.shape, case.dtype)
            append_rows(bench.folder / "accuracy.jsonl", [row])
    return right


def check_case(case: KernelCase, device: torch.device) -> str:
    """The errors of one kernel, or, after FAILED, what is wrong."""
    spec, args = case.spec, case.draw(device)
    try:
        actual = run(spec.op, args, spec.mutates)
    # What a compiler or driver raises is not to be listed; a lack of memory is not the kernel's fault.
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        return f"FAILED {type(error).__name__}: {first_line(error)}"
    expected = run(spec.reference, args, spec.mutates)
    errors = find_errors(spec, case.dtype, actual, expected)
    if errors:
        return f"FAILED {'; '.join(errors)}"
    return ", ".join(
        f"relative RMS {relative_rms(a, e):.2e}"
        if a.is_floating_point()
        else f"flips {share_of_flips(a, e):.2e}"
        for a, e in zip(actual, expected, strict=True)
    )


def time_cases(bench: GpuRun, cases: Sequence[KernelCase], ceilings: Mapping[str, float]) -> None:
    """Time every kernel, its eager reference and the libraries, warm and cold."""
    print(f"{'':56} {'variant':18} {'warm ms':>9} {'cold ms':>9} {'share':>7}", flush=True)
    for case in cases:
        if bench.has_time("times", _title(case)):
            with bench.contained("times", _title(case)):
                _time_case(bench, case, ceilings)


def _time_case(bench: GpuRun, case: KernelCase, ceilings: Mapping[str, float]) -> None:
    sets = draw_sets(case, bench.device)
    work = count_work(case, sets[0])
    variants = {"isoframe": [_bind(case.spec.op, args) for args in sets]}
    # Those of int8 products compute in fp64, which takes a minute on many cards and says nothing.
    if not any("s8" in types for types in case.spec.mma.values()):
        variants["eager reference"] = [_bind(case.spec.reference, args) for args in sets[:1]]
    variants |= {name: [call] for name, call in library_calls(case, sets[0]).items()}
    for name, calls in variants.items():
        with bench.contained("times", f"{_title(case)} {name}", is_ours=name == "isoframe"):
            rows = list(_time_variant(bench, case, name, calls, work, ceilings))
            append_rows(bench.folder / "times.jsonl", rows)


def _time_variant(
    bench: GpuRun,
    case: KernelCase,
    variant: str,
    calls: Sequence[Call],
    work: Work,
    ceilings: Mapping[str, float],
) -> Iterator[BenchRow]:
    """Rows of one variant: warm times, cold times, share of the ceiling that the cold ones reach."""
    warm = measure(bench.timer, calls[:1], is_cold=False)
    cold = measure(bench.timer, calls, is_cold=True)
    share = work.share(statistics.median(cold), ceilings) if work.ceiling in ceilings else None
    print(
        f"{_title(case):56} {variant:18} {1e3 * statistics.median(warm):9.3f} {1e3 * statistics.median(cold):9.3f} "
        f"{'?' if share is None else f'{share:.1%}':>7}",
        flush=True,
    )
    name, gate = f"time-{case.spec.name}", "see accuracy.jsonl"
    yield bench.row(f"{name}-warm", variant, "s", warm, gate, case.shape, case.dtype)
    yield bench.row(f"{name}-cold", variant, "s", cold, gate, case.shape, case.dtype)
    if share is not None:
        yield bench.row(
            f"{name}-share-of-{work.ceiling}", variant, "ratio", (share,), gate, case.shape, case.dtype
        )


def draw_sets(case: KernelCase, device: torch.device) -> list[tuple[Any, ...]]:
    """Inputs on different memory, together too large for the L2 cache."""
    first = case.draw(device)
    set_bytes = sum(arg.nbytes for arg in first if isinstance(arg, torch.Tensor))
    num_sets = min(max(-(-_ROTATED_BYTES // max(set_bytes, 1)), 1), _MAX_SETS)
    return [first, *(case.draw(device) for _ in range(num_sets - 1))]


def time_compiled(bench: GpuRun, cases: Sequence[KernelCase]) -> None:
    """Time what torch.compile makes of every reference; it must not be faster than the kernel."""
    # Products last: their references compile slowly and have a library as their real rival.
    for case in sorted(cases, key=lambda case: bool(case.spec.mma)):
        if not bench.has_time("compiled", _title(case)):
            continue
        torch._dynamo.reset()
        # Of compiling and of running alike; neither is a failure of ours.
        with bench.contained("torch.compile", _title(case), is_ours=False):
            append_rows(bench.folder / "compiled.jsonl", _time_compiled(bench, case))


def _time_compiled(bench: GpuRun, case: KernelCase) -> list[BenchRow]:
    variant = "torch.compile"
    call = _bind(torch.compile(case.spec.reference, dynamic=False), case.draw(bench.device))
    with torch.no_grad():
        warm = measure(bench.timer, [call], is_cold=False)
        cold = measure(bench.timer, [call], is_cold=True)
    print(
        f"{_title(case):56} {variant:18} {1e3 * statistics.median(warm):9.3f} {1e3 * statistics.median(cold):9.3f}",
        flush=True,
    )
    return [
        bench.row(f"time-{case.spec.name}-{state}", variant, "s", times, "none", case.shape, case.dtype)
        for state, times in (("warm", warm), ("cold", cold))
    ]


def time_steps(bench: GpuRun) -> None:
    """Time a whole step of the 13B model: bf16, int8, and diffusers' class if it is installed.

    All have the same random weights; the first result is what the others are compared with. Ours is timed only where a
    small model's step agrees with its reference.
    """
    makers: dict[str, Callable[[], Call]] = {
        f"isoframe {precision}": partial(_isoframe_step, precision, bench.device)
        for precision in ("bf16", "int8")
    }
    if installed_version("diffusers") is not None:
        makers["diffusers bf16"] = partial(_diffusers_step, bench.device)
    expected: Tensor | None = None
    for variant, make in makers.items():
        if not bench.has_time("step", variant):
            continue
        with bench.contained("step", variant, is_ours=variant.startswith("isoframe")):
            gate = _check_variant(bench, variant)
            if gate.is_green:
                result = _time_step(bench, variant, make(), expected, gate)
                expected = result if expected is None else expected
            else:
                bench.note_wrong("step", f"step {variant}", f"not timed: {gate.text}")


def _check_variant(bench: GpuRun, variant: str) -> Gate:
    program, precision = variant.split()
    if program == "diffusers":
        return Gate(is_green=True, text="diffusers' own class")
    return check_step(bench.device, precision=precision)


def _time_step(bench: GpuRun, variant: str, step: Call, expected: Tensor | None, checked: Gate) -> Tensor:
    """Time ``step`` unless its result is too far from ``expected``; the result."""
    bench.timer.reset_peak()
    result = step()
    assert isinstance(result, Tensor)
    error = 0.0 if expected is None else relative_rms(result, expected)
    # NaN is no error below a limit.
    is_right = bool(result.isfinite().all()) and error <= _MAX_STEP_ERRORS[variant]
    gate = f"{'' if is_right else 'FAILED '}{checked.text}; relative RMS to the first step {error:.2e}"
    if not is_right:
        bench.note_wrong("step", f"step {variant}", f"not timed: {gate}")
        return result
    times = measure(bench.timer, [step], is_cold=False)
    peak = bench.timer.peak_bytes()
    print(
        f"step {variant:18} {statistics.median(times):8.3f} s {peak / _GIB:8.1f} GiB  gate: {gate}",
        flush=True,
    )
    shape = (*SHAPE_640X608.size, SHAPE_640X608.num_text_tokens, SHAPE_640X608.num_image_tokens)
    precision = variant.split()[-1]
    rows = [
        bench.row("step-13b-640x608", variant, "s", times, gate, shape, precision=precision),
        bench.row("step-13b-640x608-peak", variant, "B", (float(peak),), gate, shape, precision=precision),
    ]
    append_rows(bench.folder / "steps.jsonl", rows)
    return result


def _isoframe_step(precision: str, device: torch.device) -> Call:
    step, attention = random_step(MODEL_13B, SHAPE_640X608, make_format(precision, torch.bfloat16), device)
    print(f"attention of isoframe {precision}: {attention}", flush=True)
    return step


def _diffusers_step(device: torch.device) -> Call:
    inputs = draw_inputs(MODEL_13B, SHAPE_640X608, torch.bfloat16, device)
    return diffusers_step(random_diffusers_model(MODEL_13B, torch.bfloat16, device), inputs)


def _bind(function: Callable[..., object], args: tuple[Any, ...]) -> Call:
    return lambda: function(*args)


def _title(case: KernelCase) -> str:
    return f"{case.spec.name} {'x'.join(map(str, case.shape))}"
