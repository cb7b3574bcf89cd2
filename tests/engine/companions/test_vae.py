"""Section-wise decoding equals the published soft append that keeps every frame in memory."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoframe.engine.companions.components import ComponentRef
from isoframe.engine.companions.vae import SectionDecoder, VideoVAE
from isoframe.engine.errors import CheckpointError, ConfigError, InputError
from isoframe.engine.families.framepack.family import FramePack

SIDE = 2


def tiny_model(seed=0):
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(seed)
    return AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=1, latent_channels=16
    )


@pytest.fixture(scope="module")
def vae():
    return VideoVAE(tiny_model())


def random_latents(num_frames, seed=0):
    return torch.randn(1, 16, num_frames, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def soft_append(first, second, overlap):
    weights = torch.linspace(1, 0, overlap).view(1, 1, -1, 1, 1)
    blended = first[:, :, -overlap:] * weights + second[:, :, :overlap] * (1 - weights)
    return torch.cat([first[:, :, :-overlap], blended, second[:, :, overlap:]], dim=2)


def published_inverted(vae, sections, start_latent, window):
    total, video = None, None
    for index, section in enumerate(sections):
        is_last = index == len(sections) - 1
        if is_last:
            section = torch.cat([start_latent, section], dim=2)
        total = section if total is None else torch.cat([section, total], dim=2)
        if video is None:
            video = vae.decode(total)
        else:
            new = vae.decode(total[:, :, : 2 * window + is_last])
            video = soft_append(new, video, 4 * window - 3)
    return video


def published_forward(vae, sections, start_latent, window):
    total, video = start_latent, None
    for section in sections:
        total = torch.cat([total, section], dim=2)
        if video is None:
            video = vae.decode(total)
        else:
            video = soft_append(video, vae.decode(total[:, :, -2 * window :]), 4 * window - 3)
    return video


PUBLISHED = {"inverted": published_inverted, "forward": published_forward}


def to_uint8(video):
    return (video[0].clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8).permute(1, 2, 3, 0)


def decode_job(vae, order, window, num_sections):
    """The published video of a random job, the decoder, and its final and provisional frames after each push."""
    start_latent = random_latents(1, seed=99)
    sections = [random_latents(window, seed) for seed in range(num_sections)]
    decoder = SectionDecoder(
        vae, order=order, window=window, num_sections=num_sections, start_latent=start_latent
    )
    expected = to_uint8(PUBLISHED[order](vae, sections, start_latent, window))
    pushes = [(decoder.push(section), decoder.provisional()) for section in sections]
    return expected, decoder, *zip(*pushes, strict=True)


@pytest.mark.parametrize("order", ["inverted", "forward"])
@pytest.mark.parametrize(
    ("window", "num_sections"), [(9, 1), (9, 2), (9, 3), (3, 1), (3, 5), (2, 2), (2, 5), (1, 3)]
)
def test_joined_sections_equal_the_published_soft_append(vae, order, window, num_sections):
    expected, decoder, parts, _ = decode_job(vae, order, window, num_sections)
    assert len(expected) == decoder.num_frames == 4 * window * num_sections + 1
    joined = torch.zeros_like(expected)
    num_writes = torch.zeros(len(expected))
    for part in parts:
        span = slice(part.first_frame, part.first_frame + len(part.frames))
        joined[span] = part.frames
        num_writes[span] += 1
    assert (num_writes == 1).all()
    assert torch.equal(joined, expected)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_frames_that_each_push_makes_final(vae, order):
    *_, parts, provisional = decode_job(vae, order, 3, 4)
    spans, edges = (
        [(part.first_frame, len(part.frames)) for part in column] for column in (parts, provisional)
    )
    if order == "inverted":
        assert spans == [(49, 0), (37, 12), (25, 12), (0, 25)]
        assert edges == [(40, 9), (28, 9), (16, 9), (0, 0)]
    else:
        assert spans == [(0, 4), (4, 12), (16, 12), (28, 21)]
        assert edges == [(4, 9), (16, 9), (28, 9), (49, 0)]


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_provisional_frames_are_the_video_before_the_next_blend(vae, order):
    """Stopping after two sections, the published program would show final and provisional frames together."""
    start_latent, sections = random_latents(1, 99), [random_latents(3, seed) for seed in range(3)]
    decoder = SectionDecoder(vae, order=order, window=3, num_sections=3, start_latent=start_latent)
    parts = [decoder.push(section) for section in sections[:2]]
    shown = [(part.first_frame, part.frames) for part in (*parts, decoder.provisional())]
    frames = torch.cat([frames for _, frames in sorted(shown, key=lambda item: item[0])])
    if order == "inverted":
        newest = vae.decode(torch.cat(sections[1::-1], dim=2))
        published = soft_append(newest, vae.decode(sections[0]), 9)
    else:
        published = published_forward(vae, sections[:2], start_latent, 3)
    assert torch.equal(frames, to_uint8(published))


def test_the_decoder_keeps_a_window_of_latents_and_the_open_edge(vae):
    decoder = SectionDecoder(vae, order="inverted", window=3, num_sections=20, start_latent=random_latents(1))
    for seed in range(6):
        decoder.push(random_latents(3, seed))
    held = [value for value in vars(decoder).values() if isinstance(value, torch.Tensor)]
    shapes = sorted(tuple(tensor.shape) for tensor in held)
    assert shapes == [(1, 16, 1, SIDE, SIDE), (1, 16, 3, SIDE, SIDE), (3, 9, 8 * SIDE, 8 * SIDE)]
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in held)


def test_one_section_too_many(vae):
    decoder = SectionDecoder(vae, order="forward", window=2, num_sections=1, start_latent=random_latents(1))
    decoder.push(random_latents(2))
    with pytest.raises(ValueError, match="the job has 1 sections, all of them are decoded"):
        decoder.push(random_latents(2))


def test_a_section_of_another_length(vae):
    decoder = SectionDecoder(vae, order="forward", window=2, num_sections=1, start_latent=random_latents(1))
    with pytest.raises(ValueError, match=r"latents must have 2 frames, got \(1, 16, 3, 2, 2\)"):
        decoder.push(random_latents(3))


def test_unknown_order(vae):
    with pytest.raises(ConfigError, match="did you mean 'inverted'"):
        SectionDecoder(vae, order="invertd", window=2, num_sections=1, start_latent=random_latents(1))


@pytest.mark.parametrize("num_latents", [1, 4, 5, 9, 10, 18, 19])
def test_decode_uses_the_published_temporal_chunks(vae, num_latents):
    """Chunks of 5 latents every 3, the first frame of later ones dropped, 4 frames cross-faded."""
    latents = random_latents(num_latents)
    unscaled = latents / vae.scaling_factor
    if num_latents <= 4:
        expected = decode_chunk(vae, unscaled)
    else:
        chunks = [decode_chunk(vae, unscaled[:, :, i : i + 5]) for i in range(0, num_latents, 3)]
        chunks = [chunks[0]] + [chunk[:, :, 1:] for chunk in chunks[1:]]
        expected = chunks[0][:, :, :13]
        for before, chunk in itertools.pairwise(chunks):
            # A last chunk of one latent loses its only frame.
            overlap = min(4, chunk.shape[2])
            weights = (torch.arange(overlap) / 4).view(1, 1, -1, 1, 1)
            chunk[:, :, :overlap] = (
                before[:, :, before.shape[2] - overlap :] * (1 - weights) + chunk[:, :, :overlap] * weights
            )
            expected = torch.cat([expected, chunk[:, :, :12]], dim=2)
        expected = expected[:, :, : 4 * num_latents - 3]
    frames = vae.decode(latents)
    assert frames.shape == (1, 3, 4 * num_latents - 3, 8 * SIDE, 8 * SIDE)
    torch.testing.assert_close(frames, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def decode_chunk(vae, latents):
    return vae.model.decoder(vae.model.post_quant_conv(latents))


def test_onednn_convolutions_compute_what_diffusers_computes():
    plain = tiny_model().eval()
    latents = random_latents(7)
    with torch.no_grad():
        expected = plain.decode(latents).sample
        frames = VideoVAE(tiny_model()).decode(latents * plain.config.scaling_factor)
    assert (frames - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_encoding_is_seeded_and_leaves_the_global_generator_alone(vae):
    image = torch.rand(1, 3, 1, 16, 24) * 2 - 1
    state = torch.get_rng_state()
    first = vae.encode(image, posterior="sample", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (1, 16, 1, 2, 3)
    assert first.dtype == torch.float32
    assert torch.equal(vae.encode(image, posterior="sample", seed=5), first)
    assert not torch.equal(vae.encode(image, posterior="sample", seed=6), first)


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_encoding_scales_the_posterior(vae, posterior):
    image = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, logvar = vae.model.quant_conv(vae.model.encoder(image)).chunk(2, dim=1)
    expected = mean
    if posterior == "sample":
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
        expected = mean + (0.5 * logvar).exp() * noise
    latents = vae.encode(image, posterior=posterior, seed=5)
    torch.testing.assert_close(latents, expected * 0.476986, rtol=1e-5, atol=1e-5)


def test_results_can_be_written_to(vae):
    """An inference tensor could not be changed in place by the caller."""
    latents = vae.encode(torch.zeros(1, 3, 1, 16, 16), posterior="mode", seed=0)
    latents += vae.decode(latents).mean()
    assert not latents.requires_grad


def test_encode_refuses_other_shapes(vae):
    with pytest.raises(InputError, match=r"multiples of 8, got \(1, 3, 1, 16, 20\)"):
        vae.encode(torch.zeros(1, 3, 1, 16, 20), posterior="mode", seed=0)
    with pytest.raises(ConfigError, match="posterior must be one of sample, mode"):
        vae.encode(torch.zeros(1, 3, 1, 16, 16), posterior="mean", seed=0)


def test_a_vae_with_other_chunks_is_refused():
    model = tiny_model()
    model.enable_tiling(tile_sample_stride_num_frames=8)
    with pytest.raises(CheckpointError, match=r"16 frames every 12 \(framewise\), got \(True, 16, 8\)"):
        VideoVAE(model)


def test_spatial_tiles_are_off_until_asked_for():
    vae = VideoVAE(tiny_model())
    assert not vae.model.use_tiling
    vae.use_tiles(256)
    tiles = vae.model.tile_sample_min_height, vae.model.tile_sample_stride_height
    assert (vae.model.use_tiling, tiles) == (True, (256, 192))


def load(folder, **where):
    ref = ComponentRef(source=str(folder), **where)
    return VideoVAE.load(ref, FramePack.vae_class, device="cpu", dtype=torch.float32, local_files_only=True)


def test_load_reads_a_folder(tmp_path):
    model = tiny_model(seed=3)
    model.save_pretrained(tmp_path / "vae")
    for vae in (load(tmp_path, subfolder="vae"), load(tmp_path / "vae")):
        assert (
            vae.content_hash()
            == VideoVAE(model).content_hash()
            != VideoVAE(tiny_model(seed=4)).content_hash()
        )
        assert (vae.scaling_factor, vae.num_channels) == (0.476986, 16)


def damage(folder, kind):
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    if kind == "lacks":
        save_file(
            {name: tensor for name, tensor in tensors.items() if "quant_conv.bias" not in name}, weights
        )
    elif kind == "extra":
        save_file({**tensors, "other": torch.zeros(2)}, weights)
    elif kind == "shape":
        save_file({**tensors, "quant_conv.bias": torch.zeros(2)}, weights)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        config.unlink()
    elif kind == "config":
        config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": "many"}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lacks", "2 missing: post_quant_conv.bias, quant_conv.bias; download it again"),
        ("extra", "1 unknown: other; "),
        ("shape", r"quant_conv\.bias"),
        ("truncated", "vae cannot be loaded as AutoencoderKLHunyuanVideo"),
        ("no weights", "diffusion_pytorch_model"),
        ("no config", r"has no config\.json"),
        ("config", "vae cannot be loaded as AutoencoderKLHunyuanVideo"),
    ],
)
def test_a_damaged_vae_is_refused(kind, message, tmp_path, capfd):
    tiny_model().save_pretrained(tmp_path / "vae")
    damage(tmp_path / "vae", kind)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, subfolder="vae")
    assert capfd.readouterr() == ("", "")
