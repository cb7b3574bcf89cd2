"""Latent previews: the fitted map predicts what the VAE decodes, and is computed once per VAE."""

import numpy as np
import pytest
import torch
from PIL import Image

from isoframe.engine.companions.latent_rgb import cached_latent_rgb, fit_latent_rgb, latents_to_rgb
from isoframe.engine.errors import InputError
from isoframe.engine.events import StepEvent
from isoframe.engine.media.png_writer import PngWriter
from isoframe.engine.media.previews import LatentPreviews, tile_frames


class LinearVAE:
    """Decodes each latent to a block of 8 x 8 pixels of one colour, exactly linear."""

    num_channels = 16

    def __init__(self, seed=0):
        self.matrix = torch.randn(17, 3, generator=torch.Generator().manual_seed(seed))
        self.num_decodes = 0

    def decode(self, latents):
        self.num_decodes += 1
        colours = torch.einsum("bcthw,cd->bdthw", latents, self.matrix[:-1]) + self.matrix[-1].view(
            1, 3, 1, 1, 1
        )
        return (colours * 2 - 1).repeat_interleave(8, -1).repeat_interleave(8, -2)

    def content_hash(self):
        return f"{self.matrix.sum():.6f}"


def test_fit_recovers_a_linear_vae():
    vae = LinearVAE()
    assert torch.allclose(fit_latent_rgb(vae), vae.matrix, atol=1e-4)


def test_the_fit_is_cached_by_the_weights_of_the_vae(tmp_path):
    first, other = LinearVAE(0), LinearVAE(1)
    matrix = cached_latent_rgb(first, tmp_path)
    assert torch.equal(cached_latent_rgb(first, tmp_path), matrix)
    assert first.num_decodes == 64
    assert torch.allclose(cached_latent_rgb(other, tmp_path), other.matrix, atol=1e-4)


def test_a_damaged_cache_is_fitted_again(tmp_path):
    vae = LinearVAE()
    matrix = cached_latent_rgb(vae, tmp_path)
    (file,) = (tmp_path / "latent_rgb").iterdir()
    file.write_bytes(b"damaged")
    assert torch.equal(cached_latent_rgb(vae, tmp_path), matrix)
    assert vae.num_decodes == 128


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "latent_rgb").write_text("a file where the folder should be")
    vae = LinearVAE()
    assert torch.allclose(cached_latent_rgb(vae, tmp_path), vae.matrix, atol=1e-4)
    assert "latent_rgb are not cached" in caplog.text


def test_colours_are_clamped_and_rounded():
    matrix = torch.zeros(17, 3)
    matrix[0], matrix[-1] = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 0.25, 0.5])
    latents = torch.zeros(1, 16, 2, 1, 3)
    latents[0, 0, 1] = torch.tensor([0.1, 3.0, -3.0])
    rgb = latents_to_rgb(latents, matrix)
    assert rgb.dtype == torch.uint8
    assert rgb.shape == (2, 1, 3, 3)
    assert rgb[1, 0].tolist() == [[153, 64, 102], [255, 64, 0], [0, 64, 255]]


def test_tiles_stand_side_by_side_and_are_enlarged():
    frames = torch.randint(0, 256, (3, 8, 4, 3), dtype=torch.uint8)
    strip = tile_frames(frames)
    assert strip.shape == (64, 96, 3)
    assert torch.equal(strip[::8, ::8], torch.cat(list(frames), dim=1))
    assert tile_frames(torch.zeros(2, 65, 5, 3, dtype=torch.uint8)).shape == (65, 10, 3)


def step_event(section, x0):
    return StepEvent(
        section=section, num_sections=2, step=0, num_steps=5, is_computed=True, first_latent_frame=1, x0=x0
    )


def test_one_picture_a_section_renewed_each_step(tmp_path):
    matrix = torch.rand(17, 3, generator=torch.Generator().manual_seed(0))
    writer = LatentPreviews(tmp_path / "a" / "b", matrix)
    for section, seed in ((0, 0), (0, 1), (1, 2)):
        x0 = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        path = writer.write(step_event(section, x0))
        expected = tile_frames(latents_to_rgb(x0, matrix))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert sorted(path.name for path in path.parent.iterdir()) == ["section_000.png", "section_001.png"]


def test_preview_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match=r"preview folder .* cannot be written: .*; choose another folder"):
        LatentPreviews(tmp_path / "a", torch.zeros(17, 3))


def test_a_picture_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"cannot write .*section_000\.png: No space left on device"):
        LatentPreviews(tmp_path, torch.zeros(17, 3)).write(step_event(0, torch.zeros(1, 16, 1, 8, 8)))
    assert list(tmp_path.iterdir()) == []


def test_png_sequence_in_any_order(tmp_path):
    frames = torch.randint(0, 256, (7, 16, 32, 3), dtype=torch.uint8)
    writer = PngWriter(tmp_path / "frames", num_frames=7)
    writer.write(frames[4:], 4)
    writer.write(frames[:0], 0)
    writer.write(frames[:4].numpy(), 0)
    paths = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in paths] == [f"frame_{index:05d}.png" for index in range(7)]
    for path, frame in zip(paths, frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), frame)


def test_png_sequence_replaces_an_old_one_only_when_told(tmp_path):
    frames = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    PngWriter(tmp_path, num_frames=4).write(frames, 0)
    with pytest.raises(InputError, match=r"holds frame_00000\.png; pass --overwrite"):
        PngWriter(tmp_path, num_frames=2)
    PngWriter(tmp_path, num_frames=2, overwrite=True).write(frames[:2], 0)
    assert len(list(tmp_path.iterdir())) == 2


def test_png_sequence_refuses_wrong_frames_and_folders(tmp_path):
    writer = PngWriter(tmp_path, num_frames=4)
    with pytest.raises(ValueError, match="frames must lie in 0 to 3, got 3 to 4"):
        writer.write(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T, H, W, 3\], got torch.float32"):
        writer.write(torch.zeros(2, 16, 16, 3), 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"PNG folder .* cannot be written"):
        PngWriter(tmp_path / "file", num_frames=4)
