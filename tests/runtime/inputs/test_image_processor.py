from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import ImageError, UnsupportedError
from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.inputs.image_processor import Geometry, ImageProcessor

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
LLAVA = {"image_processor_type": "LlavaImageProcessor"}
SMALL = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
PLAIN = {"do_rescale": False, "do_normalize": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "clip_defaults": CLIP,
    "clip_336": {
        **CLIP,
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "processor_class": "LlavaProcessor",
    },
    "clip_old_spelling": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": 56,
        "size": 56,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
    },
    "clip_nulls": {**CLIP, **SMALL, "do_resize": None, "resample": None, "do_rescale": None},
    "clip_bilinear": {**CLIP, **SMALL, "resample": 2},
    "clip_nearest": {**CLIP, **SMALL, "resample": 0},
    "clip_lanczos": {**CLIP, **SMALL, "resample": 1},
    "clip_crop_larger_than_resized": {**CLIP, "size": {"shortest_edge": 20}, "crop_size": [31, 46]},
    "clip_crop_without_resize": {**CLIP, "do_resize": False, "crop_size": 41},
    "clip_resize_without_crop": {
        **CLIP,
        "do_center_crop": False,
        "size": {"height": 30, "width": 47},
    },
    "clip_square_from_integer": {**CLIP, **SMALL, "size": 60, "default_to_square": True},
    "clip_one_mean_for_all": {**CLIP, **SMALL, "image_mean": 0.4, "image_std": 0.3},
    "clip_not_rescaled": {**CLIP, **SMALL, "do_rescale": False},
    "clip_not_normalised": {**CLIP, **SMALL, "do_normalize": False},
    "clip_raw_levels": {**CLIP, **SMALL, **PLAIN},
    "clip_other_rescaling": {**CLIP, **SMALL, "rescale_factor": 1 / 127.5},
    "clip_padded_alone_is_not_padded": {**CLIP, **SMALL, "do_pad": True},
    "siglip_defaults": SIGLIP,
    "siglip_384": {**SIGLIP, "size": {"height": 384, "width": 384}, "do_convert_rgb": None},
    "siglip_cropped": {**SIGLIP, "size": 60, "do_center_crop": True, "crop_size": 51},
    "llava_defaults": LLAVA,
    "llava_padded": {**LLAVA, **SMALL, "do_pad": True},
    "llava_padded_without_crop": {
        **LLAVA,
        "size": {"shortest_edge": 45},
        "do_pad": True,
        "do_center_crop": False,
    },
    "llava_padded_without_mean": {
        **LLAVA,
        **SMALL,
        "do_pad": True,
        "do_normalize": False,
        "image_mean": None,
    },
    "llava_padded_without_resize": {**LLAVA, "do_pad": True, "do_resize": False, "crop_size": 41},
}


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Coarse noise: resampling has edges and flat places to work on."""
    shape = (-(-height // 3), -(-width // 3), channels)
    coarse = np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8)
    fine = coarse.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
    return fine if channels > 1 else fine[..., 0]


def reopened(picture: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return Image.open(stream)


def upside_down() -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6
    return reopened(Image.fromarray(noise(83, 47)), "JPEG", exif=exif)


def pictures() -> dict[str, Image.Image]:
    palette = Image.fromarray(noise(53, 75)).quantize(16)
    colour, grey = Image.fromarray(noise(90, 61)), Image.fromarray(noise(61, 90, 1))
    return {
        "landscape": Image.fromarray(noise(131, 77)),
        "portrait": Image.fromarray(noise(77, 131)),
        "square": Image.fromarray(noise(56, 56)),
        "one_pixel": Image.fromarray(noise(1, 1)),
        "three_by_five": Image.fromarray(noise(3, 5)),
        "five_by_three": Image.fromarray(noise(5, 3)),
        "narrow": Image.fromarray(noise(2, 90)),
        "grey": grey,
        "grey_with_transparent_level": reopened(grey, transparency=grey.getpixel((0, 0))),
        "grey_and_alpha": Image.fromarray(noise(61, 90, 2), "LA"),
        "bilevel": grey.convert("1"),
        "palette": palette,
        "palette_with_transparent_entry": reopened(palette, transparency=3),
        "palette_with_alpha": reopened(palette, transparency=bytes(range(0, 256, 16))),
        "colour_with_transparent_colour": reopened(colour, transparency=colour.getpixel((0, 0))),
        "colour_and_alpha": Image.fromarray(noise(90, 61, 4), "RGBA"),
        "cmyk": Image.fromarray(noise(90, 61, 4), "CMYK"),
        "rotated": upside_down(),
    }


PICTURES = pictures()


def on_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def reference_processor(config: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    name = config.get("image_processor_type") or config["feature_extractor_type"]
    name = name.replace("FeatureExtractor", "ImageProcessor") + "Pil"
    return getattr(transformers, name).from_dict(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pixel_values_are_those_of_transformers(config: dict[str, Any]) -> None:
    reference = reference_processor(config)
    load_reference = pytest.importorskip("transformers.image_utils").load_image
    processor = ImageProcessor.from_config(config)
    for name, picture in PICTURES.items():
        # Its loading drops what its processor needs to lay transparency onto white.
        clear = "alpha" in name or "transparent" in name
        loaded = on_white(picture) if clear else load_reference(picture)
        expected = reference(loaded, return_tensors="np")["pixel_values"]
        values = processor(load_image(picture))
        assert values.dtype == np.float32, name
        assert values.shape == expected.shape == (1, 3, *processor.size), name
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6, err_msg=name)


def test_picture_of_any_mode_is_converted_as_transformers_does() -> None:
    config = {**CLIP, **SMALL}
    reference, processor = reference_processor(config), ImageProcessor.from_config(config)
    for name, picture in PICTURES.items():
        expected = reference(picture, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(processor(picture), expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("config", [CLIP | SMALL, LLAVA | SMALL | {"do_pad": True}])
def test_every_picture_size_is_rounded_as_transformers_does(config: dict[str, Any]) -> None:
    reference, processor = reference_processor(config), ImageProcessor.from_config(config)
    sizes = np.random.default_rng(5).integers(1, 160, (60, 2)).tolist()
    for width, height in sizes:
        picture = Image.fromarray(noise(width, height))
        expected = reference(picture, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(processor(picture), expected, rtol=0, atol=1e-6)


# Without transformers: values and places worked out by hand.


@pytest.mark.parametrize("config", [CLIP, SIGLIP, LLAVA | {"do_pad": True}])
def test_constant_colour_becomes_its_normalised_value_everywhere(config: dict[str, Any]) -> None:
    processor = ImageProcessor.from_config(config)
    clip = "Siglip" not in config["image_processor_type"]
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ([0.5] * 3, [0.5] * 3)
    colour = (10, 128, 255)
    values = processor(Image.new("RGB", (300, 300), colour))
    assert values.shape == (1, 3, 224, 224)
    assert values.flags.c_contiguous
    for channel in range(3):
        expected = (colour[channel] / 255 - mean[channel]) / std[channel]
        assert np.abs(values[0, channel] - expected).max() < 1e-6


def test_crop_beyond_the_picture_is_black_and_one_pixel_more_on_the_top_left() -> None:
    config = {**CLIP, **PLAIN, "do_resize": False, "crop_size": {"height": 5, "width": 6}}
    values = ImageProcessor.from_config(config)(Image.new("RGB", (3, 2), (9, 9, 9)))
    expected = np.zeros((5, 6))
    expected[2:4, 2:5] = 9
    assert np.array_equal(values[0, 0], expected)


def test_padding_to_a_square_has_the_mean_colour_and_centres_the_picture() -> None:
    config = {**LLAVA, **PLAIN, "do_pad": True, "do_resize": False, "crop_size": 7}
    values = ImageProcessor.from_config(config)(Image.new("RGB", (7, 4), (9, 9, 9)))
    assert (values[0, :, 1:5] == 9).all()
    for channel, level in enumerate((122, 116, 104)):
        assert (values[0, channel, [0, 5, 6]] == level).all()


def test_transparency_is_laid_onto_white() -> None:
    processor = ImageProcessor.from_config({**CLIP, **PLAIN})
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (processor(clear) == 255).all()
    assert (processor(load_image(clear)) == 255).all()


def test_picture_is_left_as_it_is() -> None:
    picture = Image.fromarray(noise(40, 30))
    before = np.array(picture)
    ImageProcessor.from_config({**LLAVA, "do_pad": True})(picture)
    assert np.array_equal(before, np.asarray(picture))


def test_other_spellings_of_the_same_config_give_the_same_processor() -> None:
    expected = ImageProcessor.from_config({**CLIP, **SMALL})
    for config in (
        {"image_processor_type": "CLIPImageProcessorFast", **SMALL},
        {"image_processor_type": "CLIPImageProcessorPil", **SMALL},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56},
        {**CLIP, "size": {"shortest_edge": 56, "longest_edge": None}, "crop_size": [56, 56]},
        {**CLIP, **SMALL, "do_pad": None, "unheard_of": 1},
        {"processor_class": "LlavaProcessor", "patch_size": 14, "image_processor": CLIP | SMALL},
    ):
        assert ImageProcessor.from_config(config) == expected


@pytest.mark.parametrize(
    "config, expected",
    [
        (CLIP, (224, 224)),
        (SIGLIP | {"size": {"height": 30, "width": 47}}, (30, 47)),
        (CLIP | {"crop_size": {"height": 30, "width": 47}}, (30, 47)),
        (LLAVA | {"do_pad": True, "do_center_crop": False, "size": 45}, (45, 45)),
    ],
)
def test_size_is_known_without_a_picture(config: dict[str, Any], expected: object) -> None:
    assert ImageProcessor.from_config(config).size == expected


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "does not name its image processor"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor"),
        ({"image_processor_type": "FastCLIPImageProcessor"}, "FastCLIPImageProcessor"),
        (CLIP | {"do_center_crop": False}, "output size depends on the picture"),
        (SIGLIP | {"do_resize": False}, "output size depends on the picture"),
        (SIGLIP | {"size": 224}, "output size depends on the picture"),
        (CLIP | {"size": {"longest_edge": 336}}, "option size "),
        (CLIP | {"size": {"shortest_edge": 336, "longest_edge": 672}}, "option size "),
        (CLIP | {"size": {"height": 0, "width": 4}}, "option size "),
        (CLIP | {"size": "224"}, "option size "),
        (CLIP | {"size": 22.4}, "option size "),
        (CLIP | {"crop_size": {"shortest_edge": 336}}, "option crop_size"),
        (CLIP | {"crop_size": True}, "option crop_size"),
        (SIGLIP | {"do_center_crop": True}, "option crop_size"),
        (CLIP | {"resample": 9}, "option resample"),
        (CLIP | {"resample": [3]}, "option resample"),
        (CLIP | {"do_resize": "yes"}, "option do_resize"),
        (CLIP | {"image_mean": None}, "option image_mean"),
        (CLIP | {"image_mean": [0.5, 0.5]}, "option image_mean"),
        (CLIP | {"image_mean": ["a", "b", "c"]}, "option image_mean"),
        (CLIP | {"image_std": [0.5, 0, 0.5]}, "option image_std"),
        (CLIP | {"rescale_factor": float("nan")}, "option rescale_factor"),
        (CLIP | {"use_square_size": True}, "option use_square_size"),
        (SIGLIP | {"do_pad": True, "pad_size": {"height": 9, "width": 9}}, "option pad_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        ImageProcessor.from_config(config)


def test_picture_of_another_mode_is_refused_where_conversion_is_off() -> None:
    processor = ImageProcessor.from_config({**CLIP, "do_convert_rgb": False})
    assert processor(Image.new("RGB", (3, 3))).shape == (1, 3, 224, 224)
    with pytest.raises(ImageError, match="wrong mode"):
        processor(Image.new("L", (3, 3)))


@pytest.mark.parametrize("config", [CLIP, LLAVA | {"do_pad": True}])
def test_elongated_picture_is_refused_before_it_fills_the_memory(config: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="too elongated"):
        ImageProcessor.from_config(config)(Image.new("RGB", (1, 200_000)))


def test_geometry_of_a_resized_and_cropped_picture() -> None:
    geometry = ImageProcessor.from_config({**CLIP, **SMALL}).geometry(640, 427)
    assert geometry == Geometry(
        picture=(640, 427),
        padded=(640, 427),
        pad_offset=(0, 0),
        resized=(83, 56),
        crop_offset=(13, 0),
        output=(56, 56),
    )
    assert geometry.to_picture(0, 0) == pytest.approx((13 * 640 / 83, 0))
    assert geometry.to_picture(56, 56) == pytest.approx((69 * 640 / 83, 427))


def test_geometry_of_a_padded_picture_reaches_outside_of_it() -> None:
    processor = ImageProcessor.from_config({**LLAVA, **SMALL, "do_pad": True})
    geometry = processor.geometry(width=100, height=200)
    assert geometry.padded == (200, 200)
    assert geometry.pad_offset == (50, 0)
    assert geometry.to_picture(0, 0) == pytest.approx((-50, 0))
    assert geometry.to_picture(28, 28) == pytest.approx((50, 100))


def test_geometry_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        ImageProcessor.from_config(CLIP).geometry(0, 5)


@pytest.mark.parametrize("width, height", [(240, 150), (150, 240), (60, 60), (40, 250)])
@pytest.mark.parametrize(
    "config",
    [
        CLIP | SMALL,
        SIGLIP | {"size": {"height": 30, "width": 47}},
        LLAVA | SMALL | {"do_pad": True},
        CLIP | {"size": {"shortest_edge": 40}, "crop_size": 99},
    ],
)
def test_geometry_says_where_the_pixels_come_from(
    config: dict[str, Any], width: int, height: int
) -> None:
    """The picture's red and green say where a pixel lies: ramps survive resampling."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    marked = np.stack([columns, rows, np.full_like(rows, 255)], axis=-1).astype(np.uint8)
    processor = ImageProcessor.from_config({**config, **PLAIN, "resample": 2})
    red, green, blue = processor(Image.fromarray(marked))[0]
    geometry = processor.geometry(width, height)
    step = max(a / b for a, b in zip(geometry.padded, geometry.resized, strict=True))
    inside = 0
    for y, x in np.ndindex(processor.size):
        left, top = geometry.to_picture(x + 0.5, y + 0.5)
        if step < left < width - step and step < top < height - step:
            assert blue[y, x] == 255
            assert abs(red[y, x] + 0.5 - left) < 0.6
            assert abs(green[y, x] + 0.5 - top) < 0.6
            inside += 1
        elif not (-step < left < width + step and -step < top < height + step):
            assert blue[y, x] < 255
    assert inside > 200
