"""Every kernel and one whole step on a GPU: right first, then how fast, within a given time.

Each stage writes its rows when it ends, so that a cut loses one stage at most.
"""

import gc
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
from .job_stages import run_jobs, summary, time_budgets

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
    cases = list(gpu_cases(device_capability(device)))
    with torch.inference_mode():
        ceilings = measure_ceilings(bench)
        right, num_wrong = check_cases(bench, cases)
        time_cases(bench, right, ceilings)
        num_wrong += time_steps(bench)
    _release()
    num_wrong += time_budgets(bench)
    num_wrong += run_jobs(bench)
    time_compiled(bench, right)
    print("\n".join(summary(folder)), flush=True)
    return num_wrong == 0


def measure_ceilings(bench: GpuRun) -> dict[str, float]:
    """Bytes a second of a copy, operations a second of bf16 and of int8 products: what shares are shares of."""
    size = _PRODUCT_SIZE
    source = torch.empty(_COPY_BYTES, dtype=torch.int8, device=bench.device).random_(-127, 127)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=bench.device).bfloat16() for _ in range(2))
    a8, b8 = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=bench.device) for _ in range(2))
    calls: dict[str, tuple[float, Call]] = {
        "copy": (2.0 * _COPY_BYTES, lambda: target.copy_(source)),
        "bf16": (2.0 * size**3, lambda: a @ b),
        "int8": (2.0 * size**3, lambda: torch._int_mm(a8, b8.t())),
    }
    units = {"copy": "B/s", "bf16": "FLOP/s", "int8": "OP/s"}
    ceilings, rows = {}, []
    for name, (amount, call) in calls.items():
        rates = [amount / seconds for seconds in measure(bench.timer, [call], is_cold=False)]
        ceilings[name] = statistics.median(rates)
        rows.append(bench.row("ceiling", name, units[name], rates, "none"))
        print(f"ceiling {name:6} {ceilings[name] / 1e12:8.2f} T{units[name]}", flush=True)
    append_rows(bench.folder / "ceilings.jsonl", rows)
    return ceilings


def check_cases(bench: GpuRun, cases: Sequence[KernelCase]) -> tuple[list[KernelCase], int]:
    """Compare every kernel with its reference at the model's shapes; the right ones, and how many are wrong."""
    right, num_wrong = [], 0
    for case in cases:
        if not bench.has_time("accuracy", _title(case)):
            continue
        gate = check_case(case, bench.device)
        is_wrong = gate.startswith("FAILED")
        num_wrong += is_wrong
        if not is_wrong:
            right.append(case)
        print(f"{_title(case):56} {gate}", flush=True)
        row = bench.row(
            f"accuracy-{case.spec.name}",
            "isoframe",
            "failures",
            (float(is_wrong),),
            gate,
            case.shape,
            case.dtype,
        )
        append_rows(bench.folder / "accuracy.jsonl", [row])
        _release()
    return right, num_wrong


def check_case(case: KernelCase, device: torch.device) -> str:
    """The errors of one kernel, or, after FAILED, what is wrong."""
    from triton.errors import TritonError

    spec, args = case.spec, case.draw(device)
    try:
        actual = run(spec.op, args, spec.mutates)
    except (RuntimeError, ValueError, TritonError) as error:
        return f"FAILED {type(error).__name__}: {str(error).strip().splitlines()[0]}"
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
            append_rows(bench.folder / "times.jsonl", list(_time_case(bench, case, ceilings)))
            _release()


def _time_case(bench: GpuRun, case: KernelCase, ceilings: Mapping[str, float]) -> Iterator[BenchRow]:
    sets = draw_sets(case, bench.device)
    work = count_work(case, sets[0])
    variants = {
        "isoframe": [_bind(case.spec.op, args) for args in sets],
        "eager reference": [_bind(case.spec.reference, args) for args in sets[:1]],
    }
    variants |= {name: [call] for name, call in library_calls(case, sets[0]).items()}
    for name, calls in variants.items():
        yield from _time_variant(bench, case, name, calls, work, ceilings)


def _time_variant(
    bench: GpuRun,
    case: KernelCase,
    variant: str,
    calls: Sequence[Call],
    work: Work,
    ceilings: Mapping[str, float],
) -> Iterator[BenchRow]:
    """Rows of one variant: warm times, cold times, share of the ceiling that the cold ones reach."""
    try:
        warm = measure(bench.timer, calls[:1], is_cold=False)
        cold = measure(bench.timer, calls, is_cold=True)
    except torch.OutOfMemoryError:
        print(f"{_title(case):56} {variant:18} left out: the GPU has too little memory", flush=True)
        return
    share = work.share(statistics.median(cold), ceilings)
    print(
        f"{_title(case):56} {variant:18} {1e3 * statistics.median(warm):9.3f} {1e3 * statistics.median(cold):9.3f} "
        f"{share:7.1%}",
        flush=True,
    )
    name, gate = f"time-{case.spec.name}", "see accuracy.jsonl"
    yield bench.row(f"{name}-warm", variant, "s", warm, gate, case.shape, case.dtype)
    yield bench.row(f"{name}-cold", variant, "s", cold, gate, case.shape, case.dtype)
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
        try:
            append_rows(bench.folder / "compiled.jsonl", _time_compiled(bench, case))
        # Of compiling and of running alike; neither is a failure of ours.
        except RuntimeError as error:
            print(
                f"{_title(case):56} torch.compile left out: {str(error).strip().splitlines()[0]}", flush=True
            )
        _release()


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


def time_steps(bench: GpuRun) -> int:
    """Time a whole step of the 13B model: bf16, int8, and diffusers' class if it is installed; how many were wrong.

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
    num_wrong = 0
    for variant, make in makers.items():
        if bench.has_time("step", variant):
            gate = _check_variant(bench, variant)
            if not gate.is_green:
                num_wrong += 1
                print(f"step {variant}: WRONG, not timed: {gate.text}", flush=True)
                continue
            try:
                result, is_right = _time_step(bench, variant, make(), expected, gate)
                expected = result if expected is None else expected
                num_wrong += not is_right
            except torch.OutOfMemoryError:
                print(f"step {variant}: left out, the GPU has too little memory", flush=True)
            _release()
    return num_wrong


def _check_variant(bench: GpuRun, variant: str) -> Gate:
    program, precision = variant.split()
    if program == "diffusers":
        return Gate(is_green=True, text="diffusers' own class")
    return check_step(bench.device, precision=precision)


def _time_step(
    bench: GpuRun, variant: str, step: Call, expected: Tensor | None, checked: Gate
) -> tuple[Tensor, bool]:
    """Time ``step`` unless its result is too far from ``expected``; the result, and whether it is right."""
    bench.timer.reset_peak()
    result = step()
    assert isinstance(result, Tensor)
    error = 0.0 if expected is None else relative_rms(result, expected)
    # NaN is no error below a limit.
    is_right = bool(result.isfinite().all()) and error <= _MAX_STEP_ERRORS[variant]
    gate = f"{'' if is_right else 'FAILED '}{checked.text}; relative RMS to the first step {error:.2e}"
    if not is_right:
        print(f"step {variant}: WRONG, not timed: {gate}", flush=True)
        return result, False
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
    return result, True


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


def _release() -> None:
    """Give freed memory back, so that the next measurement starts with all of it."""
    gc.collect()
    torch.cuda.empty_cache()
