"""docs/memory.md says what the code counts: its formulas are run, its example is made again."""

import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from isoframe.engine import SamplingConfig
from isoframe.engine.families.framepack.model_sizes import published_shapes
from isoframe.engine.families.framepack.step_sizes import DenoiseShape, packed_sequence, weight_sizes
from isoframe.engine.families.framepack.vae_sizes import VaeWork
from isoframe.engine.model.precision import find_precision
from isoframe.engine.planning.budget import make_plan
from isoframe.engine.planning.host_bytes import most_held_frames
from isoframe.engine.planning.machine import Machine, find_card
from isoframe.engine.planning.planned_job import PlannedJob
from isoframe.engine.request.schedule import published_schedule

DOC = (Path(__file__).resolve().parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
FORMULAS = "\n".join(re.findall(r"```python\n(.*?)```", DOC, re.DOTALL))
SHAPES = published_shapes()
CONFIG = SHAPES.transformer
SMALL = Machine(vram=6 * 2**30, ram=16 * 2**30, card=find_card("RTX 3060 Laptop"))
# W, q, e, r
BYTES = {"fp32": (4, 0, 4, 4), "bf16": (2, 0, 2, 2), "fp16": (2, 0, 2, 4), "int8-weight": (1, 4, 2, 2)}


def documented(precision: str, size: tuple[int, int], window: int, chunk: int) -> dict[str, Any]:
    """Every name that the formulas define, for a prompt of 100 tokens and 12 steps."""
    weight, scale, activation, residual = BYTES[precision]
    names: dict[str, Any] = {
        "ceil": ceil, "D": 3072, "M": 12288, "H": 24, "K": 128, "dual": 20, "single": 40,
        "height": size[0] // 8, "width": size[1] // 8, "window": window, "vision": 729, "text": 100,
        "steps": 12, "branches": 1, "W": weight, "q": scale, "e": activation, "r": residual, "chunk": chunk,
        "L": 351, "E": 4096, "A": 32, "C0": 128, "C1": 256, "C2": 512, "F": 17, "Y": 256, "X": 192,
        "store": 0, "staging": 0, "once": 0, "vae": 0, "encoder": 0, "frames": 0, "history": 0,
        "runtime": 0,
    }  # fmt: skip
    exec(FORMULAS, names)
    return names


def shape_of(precision: str, size: tuple[int, int], window: int) -> DenoiseShape:
    return DenoiseShape(
        config=CONFIG,
        precision=find_precision(precision),
        sequence=packed_sequence(CONFIG, size, published_schedule("inverted", window), vision=729, text=100),
        num_steps=12,
    )


@pytest.mark.parametrize("chunk", [512, 2048])
@pytest.mark.parametrize(("size", "window"), [((640, 608), 9), ((416, 960), 5), ((336, 272), 3)])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_step_loop_takes_what_the_formulas_say(
    precision: str, size: tuple[int, int], window: int, chunk: int
) -> None:
    names, shape = documented(precision, size, window, chunk), shape_of(precision, size, window)
    assert names["N"] == shape.sequence.total
    assert names["tables"] == shape.table_bytes()
    assert names["job_tables"] == shape.job_table_bytes()
    assert names["embeds"] == shape.embeds_bytes()
    assert names["outside"] == shape.weights.per_step
    assert names["activations"] == shape.table_bytes() + shape.activation_bytes(chunk)


@pytest.mark.parametrize("precision", BYTES)
def test_units_and_preparation_take_what_the_formulas_say(precision: str) -> None:
    names = documented(precision, (640, 608), 9, 512)
    assert (
        weight_sizes(CONFIG, find_precision(precision)).units
        == (names["stream_unit"],) * 40 + (names["single_unit"],) * 40
    )
    assert names["prepare"] == shape_of(precision, (640, 608), 9).prepare_bytes()


def test_exceptions_take_what_the_notes_say() -> None:
    names, shape = documented("bf16", (640, 608), 9, 512), shape_of("bf16", (640, 608), 9)
    base = shape.activation_bytes(512)
    tokens, dim = names["N"], names["D"]
    expanded = replace(shape, precision=find_precision("int8-weight"))
    assert expanded.activation_bytes(512) - base == 2 * names["unit_weights"]
    for step_cache, rows in (("teacache", names["latent"] + names["noisy"]), ("magcache", names["noisy"])):
        assert replace(shape, step_cache=step_cache).activation_bytes(512) - base == 2 * dim * rows
    whole = documented("bf16", (640, 608), 9, tokens)
    assert shape.table_bytes() + shape.activation_bytes(None) == whole["activations"] + 2 * tokens * dim
    int8 = replace(shape, precision=find_precision("int8"), attention="int8")
    scales = 4 * 24 * (ceil(tokens / 128) + ceil(tokens / 64)) + 4 * dim * 60
    values = 2 * 64 * ceil(tokens / 64) * dim
    assert int8.activation_bytes(512) == names["held"] + 2 * tokens * dim + values + scales
    assert int8._norm_bytes() == tokens * (dim + 8)
    assert int8._product_bytes(512) == names["latent"] * (dim + 8)
    assert int8._product_bytes(tokens) == tokens * (2 * dim + names["M"] + 16)


def test_encoders_and_tiles_take_what_the_formulas_say() -> None:
    names = documented("bf16", (640, 608), 9, 512)
    assert names["encoder"] == SHAPES.text_encoder.activation_bytes(2)
    work = VaeWork(vae=SHAPES.vae, size=(256, 192), tile=None)
    assert names["tile"] == work.decode_bytes(5)
    ends = 2 * (3 * 17 + 16) * 256 * 192
    assert names["clip"] + ends == work.encode_bytes(17)
    frames = 2 * 3 * 17 * 256 * 192
    assert work.decode_bytes(8) - names["tile"] == frames


@pytest.mark.parametrize("branches", [1, 2])
def test_weights_outside_the_units_are_in_every_phase_and_job_tables_in_decoding(branches: int) -> None:
    sampling = SamplingConfig(num_sections=4, cfg_scale=float(branches))
    job = PlannedJob(shapes=SHAPES, sampling=sampling, size=(640, 608), precision="int8")
    phases = make_plan(job, SMALL).phases
    shape = job.denoise_shape(SMALL)
    kept = shape.weights.per_step + shape.embeds_bytes()
    assert shape.weights.per_step / 2**20 == pytest.approx(28.9, abs=0.05)
    assert all(phase.weights >= kept for phase in phases)
    decode = phases[-1].activations - VaeWork(vae=SHAPES.vae, size=(640, 608), tile=256).decode_bytes(19)
    assert decode == shape.job_table_bytes()
    assert decode / 2**20 == pytest.approx(branches * 90.5 + 4.3, abs=0.3)


@pytest.mark.parametrize(("ram", "store", "staging"), [(16, 80, 0), (10.5, 80, 3), (4, 0, 3)])
def test_ram_holds_what_the_table_says(ram: float, store: int, staging: int) -> None:
    job = PlannedJob(
        shapes=SHAPES, sampling=SamplingConfig(num_sections=4), size=(640, 608), precision="int8"
    )
    host = make_plan(job, replace(SMALL, ram=int(ram * 2**30))).host
    slot = max(weight_sizes(CONFIG, find_precision("int8")).units)
    assert host.staging == staging * slot
    assert host.store == (sum(weight_sizes(CONFIG, find_precision("int8")).units) if store else 0)
    row = {cells[1].strip(): cells[2] for line in DOC.splitlines() if len(cells := line.split("|")) == 5}
    for name, size in (
        ("VAE", host.vae),
        ("encoder", host.encoder),
        ("weights that a job needs once", host.once),
        ("runtime", host.runtime),
    ):
        found = re.search(r"(\d+) MiB", row[name])
        assert found is not None
        assert -(-size // 2**20) == int(found[1])
    assert host.frames == eval(row["frames"].strip(" `"), {"pixels": 640 * 608, "window": 9})
    names = {
        name: getattr(host, name)
        for name in ("store", "staging", "once", "vae", "encoder", "frames", "history", "runtime")
    }
    formula = re.search(r"^ram = (.*)$", FORMULAS, re.MULTILINE)
    assert formula is not None
    assert host.total == eval(formula[1], names)


def test_the_history_takes_what_the_table_says_where_the_order_lets_it_grow() -> None:
    row = next(line.split("|")[2].strip(" `") for line in DOC.splitlines() if line.startswith("| history |"))
    sampling = SamplingConfig(num_sections=800, order="planned", allow_untrained=True)
    job = PlannedJob(shapes=SHAPES, sampling=sampling, size=(640, 608), precision="int8")
    host = make_plan(job, SMALL).host
    assert host.history == eval(row, {"pixels": 640 * 608, "held": most_held_frames(sampling)})
    # Every fourth of 800 sections waits for its neighbours and for the decoder.
    assert host.history > 2 * 200 * 9 * 4 * 16 * 80 * 76
    published = replace(job, sampling=SamplingConfig(num_sections=800))
    assert make_plan(published, SMALL).host.history == 0


def test_on_the_cpu_the_vae_is_in_every_phase_and_not_in_ram_twice() -> None:
    job = PlannedJob(
        shapes=SHAPES, sampling=SamplingConfig(num_sections=1), size=(640, 608), precision="fp32"
    )
    plan = make_plan(job, replace(SMALL, vram=64 * 2**30, ram=64 * 2**30, is_cpu=True))
    assert all(phase.weights >= 4 * SHAPES.vae.num_params for phase in plan.phases)
    assert (plan.host.vae, plan.host.encoder) == (0, 0)


def test_the_example_is_what_the_planner_prints() -> None:
    example = re.search(r"```\n(\$ isoframe plan .*?)```", DOC, re.DOTALL)
    assert example is not None
    command, _, table = example[1].partition("\n")
    assert (
        command
        == "$ isoframe plan --card 'RTX 3060 Laptop' --vram 6GiB --ram 16GiB --precision int8 --size 640x608"
    )
    plan = make_plan(
        PlannedJob(shapes=SHAPES, sampling=SamplingConfig(num_sections=4), size=(640, 608), precision="int8"),
        SMALL,
    )
    assert table.strip() == str(plan).strip()
