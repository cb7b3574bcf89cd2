"""The tensors that are alive at the worst moment are found, with the code that made them."""

from pathlib import Path

import torch

from isoframe.bench.meters.live_tensors import LiveTensors
from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.demo import find_example
from isoframe.engine.events import PhaseEvent

KIB = 1024


def test_a_peak_holds_what_is_alive_and_nothing_that_is_gone() -> None:
    with LiveTensors("cpu") as live:
        first = torch.empty(KIB, dtype=torch.uint8)
        gone = torch.empty(4 * KIB, dtype=torch.uint8)
        del gone
        last = torch.empty(2 * KIB, dtype=torch.uint8)
        view = last[:10]
    (peak,) = live.peaks()
    assert (peak.phase, peak.num_bytes) == ("start", 5 * KIB)
    assert [(owner.what, owner.num_bytes) for owner in peak.owners] == [
        ("uint8 [4096]", 4 * KIB),
        ("uint8 [1024]", KIB),
    ]
    assert first.numel() + view.numel() > 0


def test_a_phase_begins_with_what_the_one_before_left() -> None:
    with LiveTensors("cpu") as live:
        kept = torch.empty(4 * KIB, dtype=torch.uint8)
        live.on_event(PhaseEvent(phase="decode"))
        more = torch.empty(KIB, dtype=torch.uint8)
        del kept
        live.on_event(PhaseEvent(phase="encode"))
    assert {peak.phase: peak.num_bytes for peak in live.peaks()} == {
        "start": 4 * KIB, "decode": 5 * KIB, "encode": KIB
    }  # fmt: skip
    assert more.numel() == KIB


def test_equal_tensors_of_one_maker_are_one_owner() -> None:
    with LiveTensors("meta") as live:
        kept = [torch.empty(KIB, dtype=torch.uint8, device="meta") for _ in range(3)]
        other = torch.empty(9 * KIB, dtype=torch.uint8)
    ((owner,),) = (peak.owners for peak in live.peaks())
    assert (owner.count, owner.num_bytes, owner.name) == (3, 3 * KIB, "other code")
    assert len(kept) == 3
    assert other.device.type == "cpu"


def test_owners_of_a_real_job_are_named_after_our_functions(tmp_path: Path) -> None:
    image, prompt = find_example(None)
    request = Request(image=str(image), prompt=prompt, num_steps=1, seconds=0.5, latent_window_size=2)
    with LiveTensors("cpu") as live:
        engine = Engine.load("demo", config=EngineConfig(device="cpu"))
        engine.render(request, tmp_path / "video.mp4", on_event=live.on_event)
    peaks = {peak.phase: peak for peak in live.peaks()}
    assert {"prepare", "pack", "denoise", "decode", "encode", "write"} <= set(peaks)
    units = next(owner for owner in peaks["denoise"].owners if "ResidentUnits" in owner.name)
    assert (units.name, units.count) == ("engine.model.units: ResidentUnits.__init__", 8)
    assert any(owner.name.startswith("engine.companions.vae: ") for owner in peaks["decode"].owners[:3])
    assert peaks["decode"].num_bytes > peaks["denoise"].num_bytes
