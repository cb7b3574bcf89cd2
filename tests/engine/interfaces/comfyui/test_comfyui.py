"""The nodes of ComfyUI, loaded and executed as ComfyUI does, against what the engine gives."""

import gc
import shutil
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_comfy import FakeComfy, InterruptProcessingError, execute, load_custom_node
from lora_cases import in_peft_names, random_lora, saved
from PIL import Image
from torch import Tensor

from isoframe.engine import (
    Conditioning,
    ConfigError,
    Engine,
    EngineConfig,
    InputError,
    LoraStrength,
    Request,
    SamplingConfig,
)
from isoframe.engine.companions.components import DEMO_FOLDER
from isoframe.engine.events import StepEvent
from isoframe.engine.weights.unit_streamer import Streamer

FOLDER = Path(__file__).resolve().parents[4] / "engine" / "interfaces" / "comfyui"
IMAGE = DEMO_FOLDER.parent / "examples" / "bounce.png"
SCALE = 0.476986
SAMPLING = SamplingConfig(num_sections=2, num_steps=2, latent_window_size=2, seed=3)
WIDGETS = {"num_sections": 2, "steps": 2, "latent_window_size": 2, "seed": 3}


@dataclass(frozen=True)
class Workflow:
    """ComfyUI with the nodes, and the results of the nodes that load and encode."""

    comfy: FakeComfy
    nodes: dict[str, Any]
    engine: Any
    encoded: dict[str, Any]

    def sample(self, **changes: Any) -> dict[str, Any]:
        sockets = {name: self.encoded[name] for name in ("positive", "image_embeds", "start_latent")}
        latent: dict[str, Any]
        given = {"engine": self.engine, **sockets, **WIDGETS, **changes}
        (latent,) = execute(self.nodes["IsoframeSampler"], **given)
        return latent

    def conditioning(self, **changes: Any) -> Conditioning:
        """What the sampler's sockets hold, for the engine itself."""
        text, options = self.encoded["positive"][0]
        base = Conditioning(
            text_embeds=text,
            text_mask=torch.ones(text.shape[:2], dtype=torch.bool),
            pooled_embeds=options["pooled_output"],
            image_embeds=self.encoded["image_embeds"].last_hidden_state,
            start_latent=self.encoded["start_latent"]["samples"] * SCALE,
        )
        return replace(base, **changes)


@contextmanager
def open_workflow(folder: Path, *, has_v3: bool) -> Iterator[Workflow]:
    """ComfyUI with a link to the nodes' folder or, without the V3 schema, a copy of it."""
    with pytest.MonkeyPatch.context() as patch, FakeComfy().installed(has_v3=has_v3) as comfy:
        patch.setenv("ISOFRAME_CACHE", str(folder / "cache"))
        (folder / "custom_nodes").mkdir()
        if has_v3:
            (folder / "custom_nodes" / "isoframe").symlink_to(FOLDER, target_is_directory=True)
        else:
            shutil.copytree(FOLDER, folder / "custom_nodes" / "isoframe")
        nodes = load_custom_node(folder / "custom_nodes" / "isoframe")
        engine = execute(nodes["IsoframeLoadEngine"], device="cpu")[0]
        with Image.open(IMAGE) as file:
            image = torch.from_numpy(np.array(file.convert("RGB")))[None].float() / 255
        names = ("positive", "negative", "image_embeds", "start_latent")
        outputs = execute(
            nodes["IsoframeEncode"],
            engine=engine,
            image=image,
            prompt="a red circle bounces",
            negative_prompt="a star",
        )
        yield Workflow(comfy, nodes, engine, dict(zip(names, outputs, strict=True)))


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflow]:
    with open_workflow(tmp_path_factory.mktemp("comfyui"), has_v3=True) as workflow:
        yield workflow


@pytest.fixture(autouse=True)
def calm(workflow: Workflow) -> Iterator[None]:
    workflow.comfy.bars.clear()
    yield
    workflow.comfy.interrupt_after = None


def engine_of(workflow: Workflow) -> Engine:
    engine: Engine = workflow.engine.engine
    return engine


def test_the_encoded_prompt_and_image_are_those_of_a_request(workflow: Workflow) -> None:
    request = Request(image=IMAGE, prompt="a red circle bounces", cfg_scale=2.0, negative_prompt="a star")
    expected = engine_of(workflow).condition(request)
    ours = workflow.conditioning()
    assert torch.equal(ours.text_embeds, expected.text_embeds[:, : ours.text_embeds.shape[1]])
    assert int(expected.text_mask.sum()) == ours.text_embeds.shape[1]
    assert torch.equal(ours.pooled_embeds, expected.pooled_embeds)
    assert torch.equal(ours.image_embeds, expected.image_embeds)
    torch.testing.assert_close(ours.start_latent, expected.start_latent, rtol=1e-6, atol=1e-6)
    assert torch.equal(workflow.encoded["negative"][0][1]["pooled_output"], expected.negative_pooled_embeds)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_sampler_gives_the_latents_of_the_engine(workflow: Workflow, order: str) -> None:
    expected = engine_of(workflow).sample_video(workflow.conditioning(), replace(SAMPLING, order=order))
    latent = workflow.sample(order=order)
    assert latent["samples"].shape == (1, 16, 5, 8, 8)
    assert torch.equal(latent["samples"], expected / SCALE)
    (moves,) = workflow.comfy.bars
    assert [move[:2] for move in moves] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {move[2] for move in moves} == {("JPEG", (1, 16, 2, 8, 8), 512)}


def test_guidance_and_other_shapes_of_inputs_are_taken(workflow: Workflow) -> None:
    negative = workflow.encoded["negative"]
    text, options = negative[0]
    expected = engine_of(workflow).sample_video(
        workflow.conditioning(
            negative_text_embeds=text,
            negative_text_mask=torch.ones(text.shape[:2], dtype=torch.bool),
            negative_pooled_embeds=options["pooled_output"],
        ),
        replace(SAMPLING, cfg_scale=2.0),
    )
    # A padded prompt with a mask, and the latent of an image VAE.
    padded = torch.nn.functional.pad(text, (0, 0, 0, 3), value=torch.nan)
    mask = (torch.arange(padded.shape[1]) < text.shape[1])[None].float()
    flat = {"samples": workflow.encoded["start_latent"]["samples"][:, :, 0]}
    latent = workflow.sample(
        cfg=2.0, negative=[[padded, options | {"attention_mask": mask}]], start_latent=flat
    )
    assert torch.equal(latent["samples"], expected / SCALE)


def test_loras_from_comfyuis_folder_are_at_work_in_their_sections(workflow: Workflow, tmp_path: Path) -> None:
    shapes = {
        name: shape
        for name, shape in engine_of(workflow)._denoiser.transformer.layer_shapes.items()
        if "attn.to_" in name
    }
    workflow.comfy.files["loras"] = {
        f"{name}.safetensors": saved(
            tmp_path / f"{name}.safetensors", in_peft_names(random_lora(shapes, seed=seed))
        )
        for seed, name in enumerate(("style", "face"))
    } | {"old.pt": tmp_path / "old.pt"}
    node = workflow.nodes["IsoframeLora"]
    (loras,) = execute(node, lora="style.safetensors", strength=0.5, sections="2")
    (loras,) = execute(node, lora="face.safetensors", strength=-0.3, loras=loras)
    uses = (
        LoraStrength(source=tmp_path / "style.safetensors", strength=0.5, sections=(1,)),
        LoraStrength(source=tmp_path / "face.safetensors", strength=-0.3),
    )
    expected = engine_of(workflow).sample_video(workflow.conditioning(), replace(SAMPLING, loras=uses))
    samples = workflow.sample(loras=loras)["samples"]
    assert torch.equal(samples, expected / SCALE)
    assert not torch.equal(samples, workflow.sample()["samples"])
    with pytest.raises(AssertionError, match=r"lora: 'old\.pt' is none of"):
        execute(node, lora="old.pt")
    with pytest.raises(ConfigError, match="sections must be empty or such as 1,3-5, got 'all'"):
        execute(node, lora="style.safetensors", sections="all")


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_decoder_gives_the_frames_of_the_engine(workflow: Workflow, order: str) -> None:
    latent = workflow.sample(order=order)
    (images,) = execute(workflow.nodes["IsoframeDecode"], engine=workflow.engine, samples=latent)
    parts = engine_of(workflow).decode(latent["samples"] * SCALE, order=order, latent_window_size=2)
    expected = {part.first_frame: part.frames for part in parts}
    assert images.dtype == torch.float32
    assert images.shape == (17, 64, 64, 3)
    assert torch.equal(images, torch.cat([expected[first] for first in sorted(expected)]).float() / 255)
    assert [move[:2] for move in workflow.comfy.bars[-1]] == [(1, 2), (2, 2)]
    with pytest.raises(InputError, match="must come from the Isoframe sampler"):
        execute(
            workflow.nodes["IsoframeDecode"], engine=workflow.engine, samples={"samples": latent["samples"]}
        )


def test_an_interrupt_stops_after_the_step_at_hand_and_frees_what_was_made(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors: list[weakref.ref[Tensor]] = []
    made = StepEvent.__init__

    def watch(self: StepEvent, **fields: Any) -> None:
        tensors.append(weakref.ref(fields["x0"]))
        made(self, **fields)

    monkeypatch.setattr(StepEvent, "__init__", watch)
    workflow.comfy.interrupt_after = 3
    with pytest.raises(InterruptProcessingError):
        workflow.sample()
    # Three steps were shown; the user cancels then, and no other is.
    assert len(workflow.comfy.bars[-1]) == 3
    gc.collect()
    assert len(tensors) in (3, 4)
    assert [tensor() for tensor in tensors if tensor() is not None] == []
    workflow.comfy.interrupt_after = None
    assert workflow.sample()["samples"].isfinite().all()


def test_a_decoding_is_interrupted_too(workflow: Workflow) -> None:
    latent = workflow.sample()
    workflow.comfy.interrupt_after = 1
    with pytest.raises(InterruptProcessingError):
        execute(workflow.nodes["IsoframeDecode"], engine=workflow.engine, samples=latent)
    assert len(workflow.comfy.bars[-1]) == 1


def test_previews_are_not_drawn_where_comfyui_has_them_off(workflow: Workflow) -> None:
    workflow.comfy.has_previews = False
    workflow.sample()
    workflow.comfy.has_previews = True
    assert {move[2] for move in workflow.comfy.bars[-1]} == {None}


def test_wrong_sockets_are_named(workflow: Workflow) -> None:
    positive, start = workflow.encoded["positive"], workflow.encoded["start_latent"]["samples"]
    with pytest.raises(InputError, match="positive must be one prompt, got 2"):
        workflow.sample(positive=positive * 2)
    with pytest.raises(InputError, match="positive must have text and pooled embeddings"):
        workflow.sample(positive=[[positive[0][0], {}]])
    with pytest.raises(InputError, match="give one latent, not a batch"):
        workflow.sample(start_latent={"samples": start.repeat(2, 1, 1, 1, 1)})
    with pytest.raises(InputError, match="must be given at cfg_scale = 3"):
        workflow.sample(cfg=3.0)


def test_the_loader_takes_files_and_budgets_and_its_engine_closes_when_comfyui_lets_go(
    workflow: Workflow, tmp_path: Path
) -> None:
    weights = DEMO_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors"
    file = tmp_path / "small.safetensors"
    shutil.copy(weights, file)
    shutil.copy(DEMO_FOLDER / "transformer" / "config.json", tmp_path / "config.json")
    workflow.comfy.files["diffusion_models"] = {"small.safetensors": file}
    (handle,) = execute(
        workflow.nodes["IsoframeLoadEngine"],
        model="small.safetensors",
        precision="int8",
        ram="2GiB",
        device="cpu",
    )
    engine = handle.engine
    assert (engine.config, engine.precision) == (
        EngineConfig(device="cpu", precision="int8", ram="2GiB"),
        "int8",
    )
    del handle
    gc.collect()
    with pytest.raises(RuntimeError):
        engine._memory.units.acquire(0)
    assert workflow.sample()["samples"].isfinite().all()


def test_an_engine_whose_weights_stream_gives_the_same(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoframe.engine.planning.planned_job._STORED_BYTES", 1)
    (handle,) = execute(workflow.nodes["IsoframeLoadEngine"], device="cpu", ram="116MiB")
    streamed = replace(workflow, engine=handle)
    assert torch.equal(streamed.sample()["samples"], workflow.sample()["samples"])
    assert isinstance(handle.engine._memory.units, Streamer)


def test_comfyui_has_the_whole_card_for_its_own_models(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifted: list[Engine] = []
    monkeypatch.setattr(Engine, "lift_memory_limit", lambda engine: lifted.append(engine))
    (handle,) = execute(workflow.nodes["IsoframeLoadEngine"], device="cpu")
    assert lifted == [handle.engine]


def test_the_modules_keep_nothing_between_nodes(workflow: Workflow) -> None:
    workflow.sample()
    for name, module in list(sys.modules.items()):
        if name.startswith("isoframe.engine.interfaces.comfyui"):
            held = [key for key, value in vars(module).items() if isinstance(value, Engine | Tensor)]
            assert held == [], name


def test_the_classic_schema_gives_the_same(workflow: Workflow, tmp_path: Path) -> None:
    latent = workflow.sample()
    with open_workflow(tmp_path, has_v3=False) as classic:
        assert all(not hasattr(node, "define_schema") for node in classic.nodes.values())
        assert classic.nodes.keys() == workflow.nodes.keys()
        for name, node in classic.nodes.items():
            for group, entries in node.INPUT_TYPES().items():
                assert entries.keys() == workflow.nodes[name].INPUT_TYPES()[group].keys()
        samples = classic.sample()
        assert torch.equal(samples["samples"], latent["samples"])
        lora = saved(tmp_path / "none.safetensors", {"a": torch.zeros(1)})
        classic.comfy.files["loras"] = {"none.safetensors": lora}
        (loras,) = execute(classic.nodes["IsoframeLora"], lora="none.safetensors", strength=0.0)
        assert loras == (LoraStrength(source=str(lora), strength=0.0),)
        (images,) = execute(classic.nodes["IsoframeDecode"], engine=classic.engine, samples=samples)
        assert images.shape == (17, 64, 64, 3)
