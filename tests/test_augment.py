"""Augmentation: pixels against numpy and scipy, gradients against finite differences, draws against probabilities."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_data
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

from gmlib import Protocol, Recipe, augment, networks
from gmlib.augment import (
    OPERATIONS,
    SIAMESE,
    Transform,
    apply_operations,
    apply_transforms,
    draw_transform,
    operations_for,
    parse_strategy,
    siamese_for,
)
from gmlib.runtime import generator

ALMOST_1 = 1 - 2**-53  # the largest number that torch.rand draws in float64


def images(n=3, channels=3, height=12, width=16, seed=0, dtype=torch.float64):
    return torch.randn(n, channels, height, width, generator=generator(seed, "images"), dtype=torch.float64).to(dtype)


def one_of(x, operations, rng):
    return apply_operations(x, operations, [rng])[0]


def independent(x, strategy, rng):
    return apply_transforms(x, strategy, [rng])[0]


def image_with_dot(n, row, column, side=28):
    x = torch.zeros(n, 1, side, side)
    x[:, :, row, column] = 1.0
    return x


def shifted_by_hand(image, down, right, fill):
    """Pad with numpy, then cut out: image (channels, height, width), fill (channels,)."""
    channels, height, width = image.shape
    padded = np.empty((channels, height + 40, width + 40))
    padded[:] = np.asarray(fill)[:, None, None]
    padded[:, 20 : 20 + height, 20 : 20 + width] = image
    return padded[:, 20 - down : 20 - down + height, 20 - right : 20 - right + width]


def sampled_by_scipy(image, matrix, fill=0.0):
    """Bilinear with ``fill`` outside: each pixel, counted from the centre, is read at matrix @ (row, column)."""
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = centre - matrix @ centre
    return np.stack(
        [ndimage.affine_transform(c, matrix, offset, order=1, mode="grid-constant", cval=fill) for c in image.numpy()]
    )


def within_4_sigma(count, n, p):
    return abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


# ---- phase 2 of the paper


def test_operations_of_the_papers_protocol():
    assert operations_for("MNIST") == ("shift", "stretch", "turn")
    assert all(operations_for(name) == () for name in ("digits", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100"))
    assert operations_for("CIFAR10", has_batchnorm=True) == operations_for("MNIST", True) == ("shift", "noise")
    used = {*augment.BATCHNORM_OPERATIONS, *(name for names in augment.DATASET_OPERATIONS.values() for name in names)}
    assert used == set(OPERATIONS)


def test_shift_moves_by_whole_pixels_and_fills_with_the_mean():
    x = image_with_dot(1000, 14, 14)
    dots = [divmod(int(image.argmax()), 28) for image in one_of(x, ("shift",), generator(0, "shift"))]
    every = {(r, c) for r in range(11, 19) for c in range(11, 19)}
    assert set(dots) == every, "all shifts from -3 to 4, and no others"
    x = images(30) + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    mean = x.mean((0, 2, 3)).numpy()
    for image, found in zip(x.numpy(), one_of(x, ("shift",), generator(1, "shift")).numpy(), strict=True):
        every = [shifted_by_hand(image, down, right, mean) for down in range(-3, 5) for right in range(-3, 5)]
        assert sum(np.allclose(found, expected, rtol=0, atol=1e-15) for expected in every) == 1


def middle_of(image, height, width):
    """The pixels in the middle of image (channels, ...), or the upper left ones of two middles."""
    top, left = (int((side - kept) / 2) for side, kept in zip(image.shape[1:], (height, width), strict=True))
    return image[:, top : top + height, left : left + width]


def stretched_by_hand(image, height, width):
    """Resize image (channels, n, m) with F.interpolate, put it on a square canvas of zeros and cut out the middle."""
    channels, *sides = image.shape
    side = max(height, width, *sides)
    canvas = torch.zeros(channels, side, side, dtype=image.dtype)
    middle_of(canvas, height, width)[:] = F.interpolate(image[None], (height, width))[0]
    return middle_of(canvas, *sides)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 16)])
def test_stretch_equals_a_loop_over_interpolate_to_the_bit(shape):
    heights, widths = (range(int(0.8 * side), int(1.2 * side) + 1) for side in shape[1:])
    sizes = torch.cartesian_prod(torch.tensor(heights), torch.tensor(widths))
    x = images(len(sizes), *shape, dtype=torch.float32)
    found = OPERATIONS["stretch"].apply(x, sizes, torch.ones(1, shape[0], 1, 1))
    for image, size, stretched in zip(x, sizes.tolist(), found, strict=True):
        assert torch.equal(stretched, stretched_by_hand(image, *size)), size


def turned_by_scipy(image, degrees, fill):
    """scipy.ndimage.rotate with its defaults, then the middle: image (channels, height, width), fill (channels,)."""
    return middle_of(ndimage.rotate(image.numpy(), degrees, axes=(1, 2), cval=float(fill.mean())), *image.shape[1:])


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 11, 11), (3, 12, 13), (1, 1, 1), (1, 2, 2)])
def test_turn_equals_scipys_cubic_splines(shape):
    degrees = torch.arange(-45, 45)
    x = images(len(degrees), *shape)
    fill = torch.linspace(0.5, 1, shape[0], dtype=x.dtype)
    found = OPERATIONS["turn"].apply(x, degrees, fill.view(1, -1, 1, 1))
    for image, angle, turned in zip(x, degrees.tolist(), found, strict=True):
        expected = turned_by_scipy(image, angle, fill)
        assert np.allclose(turned.numpy(), expected, rtol=0, atol=1e-11), angle
    single = OPERATIONS["turn"].apply(x.float(), degrees, fill.float().view(1, -1, 1, 1))
    assert torch.allclose(single.double(), found, rtol=0, atol=1e-5)


def evenly(counts, n):
    return all(within_4_sigma(count, n, 1 / len(counts)) for count in counts)


def test_drawn_numbers_are_spread_evenly():
    n, shape = 9000, torch.Size((1, 20, 30))
    shifts = OPERATIONS["shift"].draw(n, shape, generator(0, "shift"))
    assert evenly((shifts[:, 0] * 8 + shifts[:, 1] + 27).bincount(), n) and (shifts.min(), shifts.max()) == (-3, 4)
    degrees = OPERATIONS["turn"].draw(n, shape, generator(0, "turn"))
    assert degrees.unique().tolist() == list(range(-45, 45)) and evenly((degrees + 45).bincount(), n)
    height, width = OPERATIONS["stretch"].draw(n, shape, generator(0, "stretch")).T
    assert height.unique().tolist() == list(range(16, 24)), "0.8 to 1.2 of 20 in whole pixels: 24 is never drawn"
    assert width.unique().tolist() == list(range(24, 36))
    assert evenly(((height - 16) * 12 + width - 24).bincount(), n), "height and width have factors of their own"


def ramps(n, side=33):
    """Images whose channels are each pixel's row and column from the centre: a copy shows where it was read."""
    place = torch.arange(side, dtype=torch.float64) - side // 2
    return (
        torch.stack([place[:, None].expand(side, side), place[None].expand(side, side)]).expand(n, -1, -1, -1).clone()
    )


def read_at(varied):
    """(n, 2, 2): how far the reading place moves per step down and per step right, at the centre of ``ramps``."""
    m = varied.shape[-1] // 2
    down = (varied[:, :, m + 4, m] - varied[:, :, m - 4, m]) / 8
    right = (varied[:, :, m, m + 4] - varied[:, :, m, m - 4]) / 8
    return torch.stack([down, right], 2)


def test_noise_has_the_papers_standard_deviation():
    x = images(100)
    noise = (one_of(x, ("noise",), generator(0, "n")) - x).numpy()
    n = noise.size
    assert abs(noise.mean()) < 4 * 0.001 / math.sqrt(n)
    assert noise.std() == pytest.approx(0.001, rel=4 / math.sqrt(2 * n))
    assert len(np.unique(noise)) > 0.99 * n, "every pixel has its own noise"


def test_each_image_gets_one_operation_and_all_are_equally_likely():
    """Noise hardly changes an image. A shifted one has moved by whole pixels. A stretched one has no new values."""
    x = images(1, 1, 16, 16).expand(1200, -1, -1, -1)
    counts = dict.fromkeys(OPERATIONS, 0)
    mean = [float(x.mean())]
    every = np.stack([shifted_by_hand(x[0].numpy(), d, r, mean) for d in range(-3, 5) for r in range(-3, 5)])
    for image in one_of(x, tuple(OPERATIONS), generator(0, "all")):
        if torch.equal(image, x[0]):
            counts["stretch"] += 1  # to its own size; one in 64 shifts is by no pixel
        elif (abs(every - image.numpy()).max((1, 2, 3)) < 1e-12).any():
            counts["shift" if (abs(x[0] - image) > 1e-12).any() else "turn"] += 1
        elif torch.allclose(image, x[0], rtol=0, atol=0.01):
            counts["noise"] += 1
        else:
            known = torch.isin(image, torch.cat([x[0].flatten(), torch.zeros(1)])).all()
            counts["stretch" if known else "turn"] += 1
    assert all(within_4_sigma(count, 1200, 1 / 4) for count in counts.values()), counts


def test_pixels_from_outside():
    x = torch.stack([torch.full((2, 16, 16), 3.0), torch.full((2, 16, 16), 5.0)]).repeat(20, 1, 1, 1)
    x[:, 1] -= 2
    for name, outside in (("shift", (4, 2)), ("turn", (3, 3)), ("stretch", (0, 0))):
        varied = one_of(x, (name,), generator(0, name))
        for c, expected in enumerate(outside):
            unlike = ((varied[:, c] - x[:, c]).abs() > 1e-5).flatten(1)
            assert 0 < unlike.double().mean() < 1 and not unlike[:, 136].any(), "the middle is unchanged"
            assert torch.allclose(varied[:, c].flatten(1)[unlike], torch.tensor(float(expected)), atol=1e-5)


def test_without_operations_images_and_generator_stay_unchanged():
    rng, x = generator(0), images()
    before = rng.get_state()
    assert torch.equal(one_of(x, (), rng), x)
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_depend_on_the_seed_and_not_on_the_dtype(name):
    x = images(8)
    first = one_of(x, (name,), generator(0, "a"))
    assert torch.equal(first, one_of(x, (name,), generator(0, "a")))
    assert not torch.equal(first, one_of(x, (name,), generator(1, "a")))
    single = one_of(x.float(), (name,), generator(0, "a"))
    assert single.dtype == torch.float32 and first.dtype == torch.float64
    assert torch.allclose(single.double(), first, atol=1e-5), "draws are the same in every dtype"


# ---- Siamese augmentation, one operation at a time


def test_flip_is_an_exact_mirror():
    x = images()
    assert torch.equal(Transform("flip", (0.49, 0, 0))(x), x.flip(3))
    assert torch.equal(Transform("flip", (0.5, 0, 0))(x), x)


@pytest.mark.parametrize(
    ("u", "down", "right"),
    [
        ((0, 0, 0), -2, -2),
        ((ALMOST_1, ALMOST_1, 0), 2, 2),
        ((0.5, 0.5, 0), 0, 0),
        ((0.2, 0.79, 0), -1, 1),
        ((0.19, 0.81, 0), -2, 2),
    ],
)
def test_siamese_crop_shifts_by_up_to_an_eighth_and_fills_with_0(u, down, right):
    x = images()  # 12 * 0.125 rounds to 2, as does 16 * 0.125
    expected = np.stack([shifted_by_hand(image, down, right, [0, 0, 0]) for image in x.numpy()])
    assert np.array_equal(Transform("crop", u)(x).numpy(), expected)


@pytest.mark.parametrize(("side", "limit"), [(8, 1), (28, 4), (32, 4), (64, 8)])
def test_siamese_crop_on_several_sizes(side, limit):
    x = image_with_dot(1, side // 2, side // 2, side)
    rng = generator(0, side)
    dots = {divmod(int(draw_transform("crop", rng)(x).argmax()), side) for _ in range(1500 if side == 64 else 800)}
    reach = range(side // 2 - limit, side // 2 + limit + 1)
    assert {r for r, _ in dots} == {c for _, c in dots} == set(reach)
    assert len(dots) > 0.9 * len(reach) ** 2, "down and right are drawn independently"


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 16), (9, 13)])
def test_cutout_hides_half_of_each_side(height, width):
    """All possible centres occur, and no others. The rest of the image is unchanged."""
    x = images(1, 2, height, width).abs() + 1
    size = [int(side * 0.5 + 0.5) for side in (height, width)]
    places = [side + (1 if length % 2 == 0 else 0) for side, length in zip((height, width), size, strict=True)]
    expected = set()
    for middle_row in range(places[0]):
        for middle_column in range(places[1]):
            image = x[0].numpy().copy()
            for r in range(middle_row - size[0] // 2, middle_row - size[0] // 2 + size[0]):
                for c in range(middle_column - size[1] // 2, middle_column - size[1] // 2 + size[1]):
                    if 0 <= r < height and 0 <= c < width:
                        image[:, r, c] = 0
            expected.add(image.tobytes())
    rng = generator(0, "cutout")
    found = {draw_transform("cutout", rng)(x)[0].numpy().tobytes() for _ in range(2500)}
    assert found == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("u", [(0.0, 0.0), (0.3, 0.9), (0.5, 0.5), (ALMOST_1, 0.1)])
def test_scale_and_rotate_against_scipy(u, channels):
    x = images(2, channels)
    down, across = (1 / 1.2 + (1.2 - 1 / 1.2) * v for v in u)
    angle = math.radians(15) * (2 * u[0] - 1)
    cos, sin = math.cos(angle), math.sin(angle)
    for name, matrix in {"scale": np.diag([down, across]), "rotate": np.array([[cos, sin], [-sin, cos]])}.items():
        expected = np.stack([sampled_by_scipy(image, matrix) for image in x])
        assert np.allclose(Transform(name, (*u, 0))(x).numpy(), expected, atol=1e-12), name


def test_a_positive_angle_turns_anticlockwise():
    x = torch.zeros(1, 1, 29, 29)
    x[0, 0, 14, 26] = 1  # 12 pixels right of the centre; 15 degrees up from there: (14 - 3.1, 14 + 11.6)
    row, column = divmod(int(Transform("rotate", (ALMOST_1, 0, 0))(x).argmax()), 29)
    assert (row, column) == (11, 26)


@pytest.mark.parametrize(
    ("name", "u"),
    [
        ("rotate", (0.5, 0.1, 0.1)),
        ("scale", (1 / (1 + 1.2),) * 2 + (0,)),
        ("crop", (0.5, 0.5, 0)),
        ("colour", (0.5, 0.5, 0.5)),
    ],
)
def test_the_middle_of_each_range_changes_nothing(name, u):
    """scale: 1/1.2 + u (1.2 - 1/1.2) = 1 at u = 1/2.2."""
    x = images()
    assert torch.allclose(Transform(name, u)(x), x, atol=1e-12)


def test_colour_against_a_calculation_by_hand():
    x = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64).view(1, 3, 1, 2)
    # Brightness adds 0.25: both pixels hold 3.25, 0.25, 0.25 in some order, with mean 1.25. Saturation 0.5 halves the
    # distance to that mean. Contrast 1.25 multiplies the distance to the mean of the image, which is 1.25 too.
    expected = torch.tensor([[2.5, 0.625], [0.625, 2.5], [0.625, 0.625]], dtype=torch.float64).view(1, 3, 1, 2)
    assert torch.allclose(Transform("colour", (0.75, 0.25, 0.75))(x), expected, rtol=1e-15)


def test_saturation_does_not_change_grey_images():
    x = images(4, 1)
    colourless, vivid = (Transform("colour", (0.7, u, 0.3))(x) for u in (0, ALMOST_1))
    assert torch.equal(colourless, vivid)
    mean = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(vivid, mean + 0.2 + 0.8 * (x - mean))


def test_ranges_of_the_colours():
    """Four pixels of light +-1 and colour (+-1, 0, -+1): light shows contrast, colour contrast times saturation."""
    light = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    colour = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x = torch.stack([light + colour, light, light - colour]).view(1, 3, 2, 2).expand(3000, -1, -1, -1)
    y = independent(x, "colour", generator(0, "ranges")).flatten(2)
    brightness = y.mean((1, 2))
    contrast = (y.mean(1) * light).mean(1)
    saturation = ((y[:, 0] - y[:, 2]) * colour).mean(1) / 2 / contrast
    for strength, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        edge = 0.01 * (high - low)
        assert low - 1e-9 <= strength.min() < low + edge and high - edge < strength.max() <= high + 1e-9
    three = torch.stack([brightness, saturation, contrast])
    assert torch.corrcoef(three).fill_diagonal_(0).abs().max() < 4 / math.sqrt(3000), "drawn independently"


def test_ranges_of_scale_and_rotate():
    scaled = read_at(independent(ramps(2000), "scale", generator(0, "s")))
    down, across = scaled[:, 0, 0], scaled[:, 1, 1]
    for zoom in (down, across):
        assert 1 / 1.2 - 1e-9 < zoom.min() < 0.84 and 1.195 < zoom.max() < 1.2 + 1e-9
    assert abs(torch.corrcoef(torch.stack([down, across]))[0, 1]) < 4 / math.sqrt(2000)
    turned = read_at(independent(ramps(2000), "rotate", generator(0, "r")))
    angle = torch.atan2(turned[:, 0, 1], turned[:, 0, 0]).rad2deg()
    assert -15 - 1e-9 < angle.min() < -14.8 and 14.8 < angle.max() < 15 + 1e-9


# ---- Siamese augmentation, all operations


def test_strategies():
    every = ("flip", "crop", "cutout", "scale", "rotate", "colour")
    assert tuple(SIAMESE) == every
    for name in ("digits", "MNIST", "SVHN"):
        assert augment.published_strategy(name) == every[1:]
    for name in ("FashionMNIST", "CIFAR10", "CIFAR100", "TinyImageNet", "imagefolder:cats"):
        assert augment.published_strategy(name) == every
    assert (
        parse_strategy("flip+crop")
        == parse_strategy("flip + crop")
        == parse_strategy(["flip", "crop"])
        == ("flip", "crop")
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SIAMESE)
def test_both_sides_get_the_same_transformation(name, channels):
    x = images(5, channels)
    both = draw_transform(name, generator(0, "both", name))
    varied = both(x)
    assert varied.shape == x.shape
    assert torch.equal(both(x), varied), "a drawn transformation does not draw again"
    assert torch.equal(both(x[2:4]), varied[2:4]), "also in another batch"
    other = {draw_transform(name, generator(i, "both", name)) for i in range(20)}
    assert len({tuple(t(x).flatten().tolist()) for t in other}) > 1
    small = both(x[:, :, :8, :8])
    assert small.shape == (5, channels, 8, 8), "and for another size"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SIAMESE)
def test_transforms_depend_on_the_seed_and_not_on_the_dtype(name, dtype):
    x = images(6, dtype=dtype)
    varied = independent(x, (name,), generator(3, "x"))
    assert varied.dtype == dtype
    assert torch.equal(varied, independent(x, name, generator(3, "x")))
    assert torch.allclose(varied.double(), independent(images(6), name, generator(3, "x")), atol=1e-5)
    assert (
        draw_transform(name, generator(3, "x"))
        == draw_transform(name, generator(3, "x"))
        != draw_transform(name, generator(4, "x"))
    )


def test_global_random_state_and_images_stay_unchanged():
    state, x = torch.get_rng_state(), images()
    before = x.clone()
    one_of(x, tuple(OPERATIONS), generator(0))
    independent(x, tuple(SIAMESE), generator(0))
    for name in SIAMESE:
        draw_transform(name, generator(0))(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)


def test_all_siamese_operations_are_equally_likely():
    rng, n = generator(0, "even"), 6000
    drawn = [draw_transform(tuple(SIAMESE), rng) for _ in range(n)]
    for name in SIAMESE:
        assert within_4_sigma(sum(t.operation == name for t in drawn), n, 1 / 6), name
    u = torch.tensor([t.u for t in drawn], dtype=torch.float64)
    assert u.min() >= 0 and u.max() < 1
    assert ((u.mean(0) - 0.5).abs() < 4 / math.sqrt(12 * n)).all()
    assert {draw_transform("crop+flip", rng).operation for _ in range(50)} == {"crop", "flip"}


def test_each_image_has_its_own_draw():
    n = 2000
    x = images(1, 1, 4, 4).expand(n, -1, -1, -1)
    varied = independent(x, "flip+colour", generator(0, "own"))
    same, mirrored = ((varied == y).flatten(1).all(1) for y in (x, x.flip(3)))
    assert within_4_sigma(int(same.sum()), n, 1 / 4), "flip was drawn, with a strength that does not flip"
    assert within_4_sigma(int(mirrored.sum()), n, 1 / 4)
    rest = varied[~(same | mirrored)]
    assert len(rest.unique(dim=0)) == len(rest), "no two have the same strength"
    slope = (rest - rest.mean((1, 2, 3), keepdim=True)) / (x[0] - x[0].mean())
    assert torch.allclose(slope, slope[:, :1, :1, :1].expand_as(slope)), "and all others changed by colour alone"


def test_images_keep_their_order():
    """The images differ in brightness by far more than any operation changes it."""
    size = 100.0 ** torch.arange(5, dtype=torch.float64)
    x = (size.view(-1, 1, 1, 1) * (1 + 0.1 * torch.rand(5, 1, 8, 8, generator=generator(0)))).repeat(8, 1, 1, 1)
    for seed in range(3):
        for varied in (
            one_of(x, tuple(OPERATIONS)[2:], generator(seed)),
            independent(x, "flip+rotate", generator(seed)),
        ):
            middle = varied[:, 0, 3:5, 3:5].mean((1, 2))
            assert torch.equal((middle / size.repeat(8)).round(), torch.ones(40))


# ---- several generators at once, for networks trained side by side


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("each", "alone", "names"),
    [
        (apply_operations, one_of, ("shift", "stretch", "turn")),
        (apply_operations, one_of, tuple(OPERATIONS)),
        (apply_operations, one_of, ("noise",)),
        (apply_transforms, independent, tuple(SIAMESE)),
    ],
)
def test_each_generator_draws_the_same_as_alone(each, alone, names, channels):
    """For several epochs: the copies, and the state of every generator afterwards."""
    x = images(7, channels)
    together, apart = ([generator(j, "copies") for j in range(5)] for _ in range(2))
    for _ in range(3):
        copies = each(x, names, together)
        assert torch.equal(copies, torch.stack([alone(x, names, rng) for rng in apart]))
        assert len(copies.flatten(1).unique(dim=0)) == 5
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(together, apart, strict=True))


def test_without_operations_all_copies_are_the_images():
    x, rngs = images(), [generator(0), generator(1)]
    before = [rng.get_state() for rng in rngs]
    assert torch.equal(apply_operations(x, (), rngs), torch.stack([x, x]))
    assert all(torch.equal(rng.get_state(), state) for rng, state in zip(rngs, before, strict=True))


# ---- gradients


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", SIAMESE)
def test_gradients_against_finite_differences(name, channels):
    x = images(2, channels, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(Transform(name, (0.31, 0.83, 0.64)), x)
    assert torch.autograd.gradcheck(lambda x: independent(x, (name, "flip"), generator(0, "g")), x)


@pytest.mark.parametrize("name", SIAMESE)
def test_the_matching_loss_has_a_gradient_through_a_transform(name):
    """As in Algorithm 1: the distance of two gradients in theta, differentiated in S."""
    real, S = images(4, 1, 5, 5, seed=1), images(2, 1, 5, 5).requires_grad_()
    theta = torch.randn(3, 25, generator=generator(0, "theta"), dtype=torch.float64).requires_grad_()
    both = Transform(name, (0.31, 0.83, 0.64))

    def gradient(x):
        scores = torch.tanh(both(x).flatten(1) @ theta.T)
        loss = F.cross_entropy(scores, torch.ones(len(x), dtype=torch.long))
        return torch.autograd.grad(loss, theta, create_graph=True)[0]

    def matching_loss(S):
        return (gradient(real).detach() - gradient(S)).square().sum()

    assert torch.autograd.gradcheck(matching_loss, S)
    assert torch.autograd.grad(matching_loss(S), S)[0].abs().max() > 0


# ---- the augment field of a recipe, devices, errors


def test_the_augment_field_of_a_recipe():
    x = images()
    assert siamese_for("none", "CIFAR10", generator(0))(x) is x
    rng = generator(0)
    drawn = {name: {siamese_for("dsa", name, rng).operation for _ in range(200)} for name in ("CIFAR10", "MNIST")}
    assert drawn == {"CIFAR10": set(SIAMESE), "MNIST": set(SIAMESE) - {"flip"}}
    assert siamese_for("dsa", "MNIST", generator(5)) == draw_transform(
        "crop+cutout+scale+rotate+colour", generator(5)
    )
    own = {siamese_for("dsa:crop+scale", "CIFAR10", rng).operation for _ in range(50)}
    assert own == {"crop", "scale"}, "only the listed operations"


def test_a_users_strategy_in_both_phases():
    recipe = Recipe(augment="dsa:crop+scale")
    assert Recipe(**recipe.as_dict()) == recipe
    data = make_data(dtype=torch.float32)
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0), width=4, depth=2)
    assert Protocol(augment="dsa:crop+scale").resolve(data, network)["augment"] == "dsa+crop+scale"
    for wrong, word in {
        "dsb": "'dsb'", "dsa:": "empty", "none:crop": "empty", "dsa:crops": "'crops'",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=word):
            Recipe(augment=wrong)
    with pytest.raises(ValueError, match="augment"):
        Recipe(what="inter", inter_batches="sampled", augment="dsa")


def test_operations_run_on_the_device_of_the_images():
    """Fake tensors represent tensors on a GPU: mixing them with CPU tensors is an error, as on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 3, 8, 8, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            x + torch.empty(4, 3, 8, 8)
        for vary in SIAMESE.values():
            for n in (1, 4):
                assert vary(x, torch.empty(n, 3, dtype=torch.float64)).device.type == "cuda"
        for operation in OPERATIONS.values():
            drawn = operation.draw(4, x.shape[1:], torch.Generator())
            fill = torch.empty(1, 3, 1, 1, device="cuda")
            assert drawn.device.type == "cpu" and operation.apply(x, drawn, fill).device.type == "cuda"


@pytest.mark.parametrize("strategy", ["", (), [], " "])
def test_empty_strategies(strategy):
    with pytest.raises(ValueError, match="empty"):
        draw_transform(strategy, generator(0))
    with pytest.raises(ValueError, match="empty"):
        independent(images(), strategy, generator(0))


@pytest.mark.parametrize("strategy", ["flip+color", ("flip", "color"), "color"])
def test_unknown_operations(strategy):
    with pytest.raises(ValueError, match="'color'"):
        draw_transform(strategy, generator(0))


@pytest.mark.parametrize("strategy", ["flip+", "+", "flip++crop"])
def test_strategies_with_an_extra_plus(strategy):
    with pytest.raises(ValueError, match="''"):
        parse_strategy(strategy)


def test_unknown_operation_of_phase_2():
    with pytest.raises(ValueError, match="'cutout'"):
        one_of(images(), ("shift", "cutout"), generator(0))


@pytest.mark.parametrize(
    "x", [torch.zeros(8, 8), torch.zeros(0, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]
)
def test_tensors_that_are_not_images(x):
    calls = (
        Transform("flip", (0, 0, 0)),
        lambda x: one_of(x, ("shift",), generator(0)),
        lambda x: independent(x, "flip", generator(0)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="cannot vary"):
            call(x)
