"""Images of every kind become upright 8-bit RGB; damaged and unsuitable ones are refused with a clear message."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from isoframe.engine.errors import InputError
from isoframe.engine.media.buckets import choose_bucket, scale_buckets
from isoframe.engine.media.images import fit_to_bucket, image_to_tensor, load_image

BUCKETS = [
    (416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640),
    (640, 608), (672, 576), (704, 544), (768, 512), (832, 480), (864, 448), (960, 416),
]  # fmt: skip


def gradient(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // (height - 1), x * 255 // (width - 1), (x + y) % 256], axis=-1).astype(
        np.uint8
    )


def save(path, image, **options):
    image.save(path, **options)
    return path


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_files_arrays_and_pil_images_agree(tmp_path):
    array = gradient()
    path = save(tmp_path / "a.png", Image.fromarray(array))
    for source in (path, str(path), Image.fromarray(array), array):
        np.testing.assert_array_equal(pixels(load_image(source)), array)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to stand upright
    path = save(tmp_path / "a.png", Image.fromarray(gradient()), exif=exif)
    np.testing.assert_array_equal(pixels(load_image(path)), np.rot90(gradient(), -1))


def test_transparent_parts_show_white(tmp_path):
    array = np.zeros((20, 20, 4), np.uint8)
    array[:, 10:] = (255, 0, 0, 255)
    array[:10, :10] = (0, 0, 0, 128)
    expected = np.full((20, 20, 3), 255)
    expected[:, 10:] = (255, 0, 0)
    expected[:10, :10] = 127
    for source in (array, save(tmp_path / "a.png", Image.fromarray(array))):
        np.testing.assert_allclose(pixels(load_image(source)), expected, atol=1)


def test_palette_transparency_shows_white(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (8, 0, 16, 16))
    array = pixels(load_image(save(tmp_path / "a.png", image, transparency=0)))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[0, 15].tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(mode, tmp_path):
    image = Image.fromarray(gradient()[..., 0]).convert(mode)
    array = pixels(load_image(save(tmp_path / "a.png", image)))
    np.testing.assert_array_equal(array, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))


def test_grey_array_with_channel_axis():
    array = gradient()[..., :1]
    np.testing.assert_array_equal(pixels(load_image(array)), np.repeat(array, 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(suffix, tmp_path):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    expected = np.rint(values / 257)
    for source in (path, values):
        np.testing.assert_array_equal(pixels(load_image(source))[..., 1], expected)


def test_16_bit_rgb_array_is_scaled_not_clipped():
    wide = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint16) * 85
    np.testing.assert_array_equal(pixels(load_image(wide)), np.rint(wide / 257))


def test_16_bit_rgb_png_is_scaled_not_clipped(tmp_path):
    wide = (np.arange(16 * 16 * 3).reshape(16, 16, 3) * 85).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    header = (16).to_bytes(4) + (16).to_bytes(4) + bytes([16, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_allclose(pixels(load_image(tmp_path / "a.png")), wide / 257, atol=1)


def test_cmyk_without_profile_is_read_as_ideal_inks(tmp_path):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:, 0] = 255
    path = save(tmp_path / "a.tiff", Image.fromarray(inks, mode="CMYK"))
    array = pixels(load_image(path))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[0, 15].tolist() == [0, 255, 255]


def test_cmyk_with_a_useless_profile_is_refused(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16)), icc_profile=profile)
    with pytest.raises(InputError, match=r"colour profile cannot be used .* save it as RGB"):
        load_image(path)


def test_adobe_cmyk_jpeg_keeps_white_white(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 0, 0, 0)))
    assert pixels(load_image(path)).min() >= 254


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(suffix, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(pixels(load_image(path))[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("size", "height", "width"), [((16, 16), 16, 16), ((64, 16), 16, 64), ((16, 64), 64, 16)]
)
def test_extreme_sizes_that_pass(size, height, width):
    assert load_image(Image.new("RGB", size)).size == (width, height)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((15, 30), "at least 16 px on each side, the PIL image is 30x15 .height x width.; .*--force-size"),
        ((65, 16), "at most 4:1, the PIL image is 16x65 .height x width.; .*--force-size"),
        ((16, 80), "at most 4:1, the PIL image is 80x16 .height x width.; .*--force-size"),
    ],
)
def test_unsuitable_shapes_are_refused_unless_forced(size, message):
    with pytest.raises(InputError, match=message):
        load_image(Image.new("RGB", size))
    assert load_image(Image.new("RGB", size), force=True).size == size


@pytest.mark.parametrize("size", [(8001, 8000), (12000, 10000), (40000, 30000)])
def test_more_than_64_megapixels_are_refused_before_decoding(size, tmp_path):
    """The file holds a header and no pixels, so decoding would fail with another message."""
    header = size[0].to_bytes(4) + size[1].to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + len(header).to_bytes(4) + b"IHDR" + header
    data += zlib.crc32(b"IHDR" + header).to_bytes(4) + (9).to_bytes(4) + b"IDAT"
    (tmp_path / "a.png").write_bytes(data)
    # PIL's own warning would fail the test: warnings are errors here.
    with pytest.raises(InputError, match="at most 64 megapixels"):
        load_image(tmp_path / "a.png", force=True)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"image .*nothing\.png does not exist"):
        load_image(tmp_path / "nothing.png")


def test_folder(tmp_path):
    with pytest.raises(InputError, match=f"image must be a file, {tmp_path} is a folder"):
        load_image(tmp_path)


def test_no_image(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(InputError, match=r"image .*a\.png is damaged or in none of the formats"):
        load_image(tmp_path / "a.png")


def test_a_format_that_needs_another_program_is_not_opened(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was called"))
    for name in ("a.png", "a.eps"):
        (tmp_path / name).write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n"
        )
        with pytest.raises(InputError, match="none of the formats"):
            load_image(tmp_path / name)


def test_unreadable_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(gradient()))
    # Permission bits do not stop the super-user, who runs tests in containers.
    monkeypatch.setattr(
        "builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(
        InputError, match=r"image .*a\.png cannot be read: Permission denied; check its permissions"
    ):
        load_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif"])
def test_truncated_file(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = save(tmp_path / f"a.{suffix}", Image.fromarray(noise)).read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"image .*a\.{suffix} is damaged"):
        load_image(tmp_path / f"a.{suffix}")


def test_corrupt_bytes_never_escape_as_other_errors(tmp_path):
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "PNG")
    for trial in range(200):
        data = bytearray(buffer.getvalue())
        for position in generator.integers(8, len(data), 4):
            data[position] = generator.integers(256)
        (tmp_path / f"{trial}.png").write_bytes(data)
        try:
            image = load_image(tmp_path / f"{trial}.png", force=True)
        except InputError:
            continue
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((20, 20), np.float32), "must be uint8 or uint16, got float32; scale it to 0..255"),
        (np.zeros((20, 20, 2), np.uint8), r"must be \[H, W\].*, got \(20, 20, 2\)"),
        (np.zeros((0, 20, 3), np.uint8), "must have pixels"),
        (7, "must be a path, a PIL image or a numpy array, got int"),
        (Image.new("F", (20, 20)), "floating-point pixels have no defined white"),
    ],
)
def test_unusable_sources(source, message):
    with pytest.raises(InputError, match=message):
        load_image(source)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((640, 640), (640, 608)),  # a tie: the later bucket
        ((1080, 1920), (480, 832)),
        ((1920, 1080), (832, 480)),
        ((100, 400), (416, 960)),
        ((608, 640), (608, 640)),
    ],
)
def test_buckets(size, bucket):
    assert choose_bucket(size, BUCKETS) == bucket


def test_ties_go_to_the_later_bucket():
    assert choose_bucket((10, 10), [(20, 10), (10, 20)]) == (10, 20)
    assert choose_bucket((10, 10), [(10, 20), (20, 10)]) == (20, 10)


def test_exact_images_are_not_touched():
    image = Image.fromarray(gradient(64, 96))
    assert fit_to_bucket(image, (64, 96)) is image


@pytest.mark.parametrize(("height", "width"), [(100, 333), (333, 100), (17, 31), (700, 701)])
def test_images_are_scaled_to_cover_and_cropped_in_the_centre(height, width):
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(array)
    scale = max(96 / width, 64 / height)
    scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (scaled.width - 96) / 2, (scaled.height - 64) / 2
    expected = np.asarray(scaled.crop((left, top, left + 96, top + 64)))
    np.testing.assert_array_equal(np.asarray(fit_to_bucket(image, (64, 96))), expected)


def test_a_line_does_not_become_a_giant_on_the_way():
    assert fit_to_bucket(Image.new("RGB", (30000, 1), "red"), (64, 64)).size == (64, 64)


def test_tensor_values_and_layout():
    array = gradient(16, 32)
    tensor = image_to_tensor(Image.fromarray(array))
    assert tensor.shape == (1, 3, 1, 16, 32)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor[0, :, 0].permute(1, 2, 0), array / 127.5 - 1, atol=1e-6)
    assert (tensor.min(), tensor.max()) == (-1, 1)


def test_scaled_buckets_keep_their_shapes_in_multiples_of_16() -> None:
    from isoframe.engine.generation.model_lookup import find_model

    published = find_model("framepack-13b").buckets
    assert scale_buckets(published, None) == scale_buckets(published, 640) == published
    for base in (256, 480, 960, 1280):
        scaled = scale_buckets(published, base)
        assert max(choose_bucket((1, 1), scaled)) == base
        assert all(side % 16 == 0 for bucket in scaled for side in bucket)
        for (height, width), (before, after) in zip(scaled, published, strict=True):
            assert (height, width) == (
                round(before * base / 640 / 16) * 16,
                round(after * base / 640 / 16) * 16,
            )
    assert scale_buckets([(64, 64)], 96) == ((96, 96),)
