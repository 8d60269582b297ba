import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.v2 import functional

from bcl_ray.data.views import device, draws, schedule
from bcl_ray.data.views.coefficients import COEFFICIENTS, FAMILIES, FAMILY, NAMES
from bcl_ray.data.views.device import augment, draw_augmentations, normalise
from bcl_ray.data.views.operations import OPERATIONS, Context, constants
from bcl_ray.experiment.options import ViewConfig, ViewsConfig
from bcl_ray.experiment.recipes import RECIPES

SIZE = 24
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
PLAIN = ViewConfig(crop="padded")
SIMILAR = ViewConfig(
    crop="resized", jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grayscale=0.2
)
RANDOM = SIMILAR.model_copy(update={"policy": "randaugment"})
BLURRED = RANDOM.model_copy(update={"blur": 0.5})
CIFAR = ViewConfig(crop="padded", policy="cifar10", cutout=9)


def config(classification=PLAIN, contrastive=PLAIN, **options):
    return ViewsConfig(
        image_size=SIZE,
        eval_resize=SIZE,
        classification=classification,
        contrastive=contrastive,
        mean=MEAN,
        std=STD,
        **options,
    )


@pytest.fixture(scope="module")
def images():
    """Six images (6, 3, H, W): noise, dim, two-valued, smooth, gray, flat."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, SIZE, SIZE))
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0 : 230 : SIZE * 1j, 20 : 250 : SIZE * 1j]))
    kinds = [
        noise,
        40 + noise // 4,
        np.where(noise > 99, 200, 10),
        np.concatenate([ramp, ramp.mean(axis=0, keepdims=True)]),
        np.broadcast_to(noise[:1], noise.shape),
        np.full_like(noise, 77),
    ]
    return torch.from_numpy(np.stack([kind.astype(np.uint8) for kind in kinds]))


def device_views(views, ids, options, *, seed, epoch):
    """Views with the operations that are drawn for them."""
    drawn = draw_augmentations(ids, options, num_views=views.shape[1], seed=seed, epoch=epoch)
    arrays = {
        name: torch.from_numpy(array).to(views.device) for name, array in drawn.arrays.items()
    }
    return augment(views, drawn.passes, arrays, options)


def operate(name, images, amounts, mean=MEAN):
    """One operation on all images (n, 3, H, W), with an amount for each."""
    size = images.shape[-1]
    made = COEFFICIENTS[name](np.array(amounts, np.float32), size)
    context = Context({name: slice(0, len(images))}, constants(mean, STD, size, images.device))
    coefficients = torch.from_numpy(made.copy())
    return OPERATIONS[FAMILY[name]](images, coefficients, context)


def largest_difference(ours, theirs):
    return (ours.int() - torch.stack(list(theirs)).int()).abs().max().item()


FACTORS = [0.1, 0.6, 0.93, 1.0, 1.4, 1.9]
TORCHVISIONS = {
    "brightness": (functional.adjust_brightness, FACTORS, 1),
    "contrast": (functional.adjust_contrast, FACTORS, 2),  # Pillow rounds the mean luma
    "saturation": (functional.adjust_saturation, FACTORS, 2),  # Pillow rounds the luma
    "sharpness": (functional.adjust_sharpness, FACTORS, 1),
    "gaussian_blur": (
        lambda image, sigma: functional.gaussian_blur(image, [3, 3], [sigma, sigma]),
        [0.1, 0.3, 0.7, 1.0, 1.5, 2.0],
        1,
    ),
    "hue": (functional.adjust_hue, [-0.5, -0.1, -0.03, 0.0, 0.07, 0.5], 1),
    "grayscale": (lambda image, _: functional.rgb_to_grayscale(image, 3), FACTORS, 1),
    "invert": (lambda image, _: functional.invert(image), FACTORS, 0),
    "posterize": (lambda image, bits: functional.posterize(image, int(bits)), range(1, 7), 0),
    "solarize": (functional.solarize, [0.0, 28.4, 99.9, 100.0, 200.0, 255.0], 0),
    "autocontrast": (lambda image, _: functional.autocontrast(image), FACTORS, 1),
    "equalize": (lambda image, _: functional.equalize(image), FACTORS, 0),
}
PILLOWS = {
    "brightness": (lambda image, f: ImageEnhance.Brightness(image).enhance(f), FACTORS, 0),
    "contrast": (lambda image, f: ImageEnhance.Contrast(image).enhance(f), FACTORS, 0),
    "saturation": (lambda image, f: ImageEnhance.Color(image).enhance(f), FACTORS, 0),
    "sharpness": (lambda image, f: ImageEnhance.Sharpness(image).enhance(f), FACTORS, 1),
    "grayscale": (lambda image, _: image.convert("L").convert("RGB"), FACTORS, 0),
    "invert": (lambda image, _: ImageOps.invert(image), FACTORS, 0),
    "posterize": (lambda image, bits: ImageOps.posterize(image, int(bits)), range(1, 7), 0),
    "solarize": (ImageOps.solarize, [0.0, 28.4, 99.9, 100.0, 255.0, 256.0], 0),
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), FACTORS, 1),
    "equalize": (lambda image, _: ImageOps.equalize(image), FACTORS, 0),
    "solarize_add": (
        lambda image, add: image.point(
            [min(255, value + add) if value < 128 else value for value in range(256)] * 3
        ),
        [0, 3, 60, 110, 127, 128],
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_operations_are_torchvisions(images, name):
    oracle, amounts, tolerance = TORCHVISIONS[name]
    for turn in range(6):  # every amount meets every image
        turned = [*amounts[turn:], *amounts[:turn]]
        ours = operate(name, images, turned)
        theirs = [oracle(image, amount) for image, amount in zip(images, turned, strict=True)]
        assert largest_difference(ours, theirs) <= tolerance


@pytest.mark.parametrize("name", PILLOWS)
def test_operations_are_pillows(images, name):
    oracle, amounts, tolerance = PILLOWS[name]
    for turn in range(6):
        turned = [*amounts[turn:], *amounts[:turn]]
        ours = operate(name, images, turned)
        theirs = [
            functional.pil_to_tensor(oracle(functional.to_pil_image(image), amount))
            for image, amount in zip(images, turned, strict=True)
        ]
        assert largest_difference(ours, theirs) <= tolerance


def test_every_operation_has_an_oracle():
    assert set(TORCHVISIONS) | set(PILLOWS) == set(NAMES) - set(FAMILIES["warp"])
    assert len(FAMILIES["warp"]) == 5


@pytest.mark.parametrize(("size", "kernel"), [(4, 3), (49, 5), (60, 7), (224, 23)])
def test_the_blur_kernel_is_a_tenth_of_the_image(size, kernel):
    rng = np.random.default_rng(size)
    noise = torch.from_numpy(rng.integers(0, 256, (3, 3, size, size), dtype=np.uint8))
    sigmas = [0.2, 1.0, 2.0]
    ours = operate("gaussian_blur", noise, sigmas)
    theirs = [
        functional.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
        for image, sigma in zip(noise, sigmas, strict=True)
    ]
    assert largest_difference(ours, theirs) <= 1


def sheared(horizontal, vertical):
    angles = [math.degrees(math.atan(tangent)) for tangent in (horizontal, vertical)]
    return {"shear": angles, "center": [0, 0]}


@pytest.mark.parametrize(
    ("name", "amounts", "arguments"),
    [
        ("shear_x", [-0.3, -0.1, 0, 0.05, 0.2, 0.3], lambda k: sheared(k, 0)),
        ("shear_y", [-0.3, -0.1, 0, 0.05, 0.2, 0.3], lambda k: sheared(0, k)),
        ("translate_x", [-9, -2, 0, 1, 4, 11], lambda k: {"translate": [k * SIZE, 0]}),
        ("translate_y", [-9, -2, 0, 1, 4, 11], lambda k: {"translate": [0, k * SIZE]}),
        ("rotate", [-30, -7, 0, 3, 16, 30], lambda k: {"angle": -k}),
    ],
)
def test_warps_are_torchvisions_and_blend_into_the_fill(images, name, amounts, arguments):
    amounts = np.array(amounts) / (SIZE if name.startswith("translate") else 1)
    fill = torch.tensor([120.0, 60.0, 200.0])
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": None}
    ours = operate(name, images, amounts, mean=tuple((fill / 255).tolist()))
    theirs = [
        # Torchvision darkens the seam between image and fill: it weighs the image twice there.
        # A fill of zero, its default, has no seam.
        functional.affine(
            image - fill[:, None, None],
            **(still | arguments(float(amount))),
            interpolation=InterpolationMode.BILINEAR,
        )
        + fill[:, None, None]
        for image, amount in zip(images, amounts, strict=True)
    ]
    assert largest_difference(ours, [their.round() for their in theirs]) <= 1


def as_views(images, num_views=3):
    """(N, 1 + V, H, W, 3), every view the same."""
    return images.permute(0, 2, 3, 1)[:, None].expand(-1, num_views, -1, -1, -1).contiguous()


def test_normalized_is_the_conventional_normalisation(images):
    views = as_views(images, 1)
    result = normalise(views, config())
    expected = functional.normalize(images.float() / 255, MEAN, STD)
    assert result.shape == (1, 6, 3, SIZE, SIZE)
    torch.testing.assert_close(result[0], expected, atol=2e-6, rtol=1e-5)
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_views_without_colour_are_only_normalised(images):
    views = as_views(images)
    result = device_views(views, np.arange(6), config(), seed=0, epoch=0)
    assert result.shape == (3, 6, 3, SIZE, SIZE)
    assert result.dtype == torch.float32
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert result.flatten(0, 1).data_ptr() == result.data_ptr()  # a view, not a copy
    for view in result:
        torch.testing.assert_close(view, normalise(views[:, :1], config())[0], rtol=0, atol=0)


def test_the_input_is_left_alone(images):
    views = as_views(images)
    before = views.clone()
    device_views(views, np.arange(6), config(CIFAR, BLURRED), seed=0, epoch=0)
    assert torch.equal(views, before)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.randoms())
def test_an_image_does_not_see_its_batch(seed, random):
    rng = np.random.default_rng(seed)
    views = torch.from_numpy(rng.integers(0, 256, (40, 3, SIZE, SIZE, 3), dtype=np.uint8))
    ids = rng.integers(0, 2**60, 40)
    options = config(CIFAR, BLURRED)
    whole = device_views(views, ids, options, seed=seed, epoch=3)
    chosen = random.sample(range(40), random.choice([1, 2, 7, 40]))
    part = device_views(views[chosen], ids[chosen], options, seed=seed, epoch=3)
    assert torch.equal(part, whole[:, chosen])


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    views = torch.from_numpy(rng.integers(0, 256, (40, 3, SIZE, SIZE, 3), dtype=np.uint8))
    whole = device_views(views, np.arange(40), config(CIFAR, BLURRED), seed=1, epoch=0)
    monkeypatch.setattr("bcl_ray.data.views.device._CPU_CHUNK", 5 * 3 * SIZE**2)
    again = device_views(views, np.arange(40), config(CIFAR, BLURRED), seed=1, epoch=0)
    assert torch.equal(again, whole)


def test_a_cpu_works_on_one_thread_inside_and_as_before_outside(images, monkeypatch):
    before, inside = torch.get_num_threads(), []
    cut_out = device._cut_out

    def noted(*options):
        inside.append(torch.get_num_threads())
        cut_out(*options)

    monkeypatch.setattr(device, "_cut_out", noted)
    try:
        torch.set_num_threads(2)
        device_views(as_views(images), np.arange(6), config(CIFAR), seed=0, epoch=0)
        assert inside == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_seed_epoch_id_and_view_all_change_the_colours(images):
    views, options = (
        as_views(images[:1]),
        config(SIMILAR, SIMILAR.model_copy(update={"jitter_probability": 1})),
    )
    first = device_views(views, np.array([4]), options, seed=0, epoch=0)
    assert not torch.equal(first[1], first[2])
    for ids, seed, epoch in (([5], 0, 0), ([4], 1, 0), ([4], 0, 1)):
        assert not torch.equal(
            device_views(views, np.array(ids), options, seed=seed, epoch=epoch)[1], first[1]
        )


POLICIES = {
    **{name: recipe().views for name, recipe in RECIPES.items() if recipe().views.mean},
    "all kinds": config(BLURRED, CIFAR.model_copy(update={"jitter": (0.9, 0.9, 0.9, 0.5)})),
    "four operations": config(CIFAR, BLURRED, randaugment_ops=4),
}


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(POLICIES)), st.integers(0, 2**32))
def test_a_batch_gets_the_plan_bit_for_bit(name, seed):
    """What the passes make of a batch is what each image's own operations make, one by one."""
    options = POLICIES[name].model_copy(update={"image_size": SIZE})
    rng = np.random.default_rng(seed)
    views = rng.integers(0, 256, (12, 3, SIZE, SIZE, 3), dtype=np.uint8)
    views[::3] = 100 + views[::3] // 8
    views[1::3] = np.where(views[1::3] > 99, 200, 10)
    views[0] = 77
    ids, keys = rng.integers(0, 2**60, 12), {"seed": seed, "epoch": 1}
    result = device_views(torch.from_numpy(views), ids, options, **keys)
    plan = draws.draw_operations(ids, options, num_views=3, **keys)
    for m, (kinds, amounts) in enumerate(zip(plan.kinds.T, plan.amounts.T, strict=True)):
        view, n = divmod(m, 12)
        image = torch.from_numpy(views[n, view]).permute(2, 0, 1)[None]
        for kind, amount in zip(kinds, amounts, strict=True):
            if kind != schedule.NONE:
                image = operate(NAMES[kind], image, [amount], mean=options.mean)
        side = (options.contrastive if view else options.classification).cutout
        if side:
            centres = draws.cutout_centres(ids, SIZE, view=view, **keys)
            top, left = centres[n] - side // 2
            image = image.clone()
            image[..., max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        expected = normalise(image.permute(0, 2, 3, 1)[:, None].contiguous(), options)[0, 0]
        assert torch.equal(result[view, n], expected)


@pytest.mark.parametrize(
    ("name", "num_images", "most"),
    [("cifar100_lt", 256, 14), ("imagenet_lt", 64, 13), ("digits_lt", 64, 0)],
)
def test_a_batch_takes_few_passes(name, num_images, most):
    """36 to 46 of single operations, stage by stage; hue, the longest, runs once."""
    for epoch in range(10):
        options = {"num_views": 3, "seed": 0, "epoch": epoch}
        drawn = device.draw_augmentations(np.arange(num_images), POLICIES[name], **options)
        families = [one.family for one in drawn.passes]
        assert len(families) <= most
        assert families.count("hue") <= 1


def test_a_pass_takes_images_wherever_they_are_in_their_sequence():
    hue, bright, invert = (NAMES.index(name) for name in ("hue", "brightness", "invert"))
    nothing = schedule.NONE
    kinds = np.array([[hue, bright, nothing], [bright, invert, hue], [nothing, hue, nothing]])
    passes, arrays = schedule.build_passes(kinds, np.arange(9, dtype=np.float32).reshape(3, 3), 8)
    assert [one.family for one in passes] == ["blend", "look_up", "hue", "blend"] or [
        one.family for one in passes
    ] == ["look_up", "blend", "hue", "blend"]
    assert sorted(arrays["hue_images"]) == [0, 1, 2]
    assert sorted(arrays["hue"]) == [0, 30, 42]
    assert arrays["blend_images"].tolist() == [1, 0]
    assert passes[-1].kinds == {"brightness": slice(1, 2)}


def planned(kind, count=20_000, **options):
    plan = draws.draw_operations(
        np.arange(count), config(kind, **options), num_views=1, seed=0, epoch=0
    )
    names = np.array([*NAMES, "none"])[plan.kinds]
    return names, plan.amounts


def test_jitter_is_torchvisions_distribution():
    names, amounts = planned(SIMILAR.model_copy(update={"grayscale": 0}))
    jittered = names[0] != "none"
    assert jittered.mean() == pytest.approx(0.8, abs=0.015)
    assert ((names[:4] != "none") == jittered).all()
    four = ["brightness", "contrast", "hue", "saturation"]
    assert (np.sort(names[:4, jittered], axis=0) == np.array(four)[:, None]).all()
    orders = np.unique(names[:4, jittered], axis=1, return_counts=True)[1]
    assert len(orders) == 24
    assert orders == pytest.approx(jittered.sum() / 24, rel=0.2)
    for name, low, high in (("contrast", 0.6, 1.4), ("hue", -0.1, 0.1)):
        drawn = amounts[names == name]
        assert np.quantile(drawn, [0, 0.5, 1]) == pytest.approx(
            [low, (low + high) / 2, high], abs=0.01
        )


def test_jitter_without_hue_leaves_hue_out():
    names, _ = planned(ViewConfig(crop="resized", jitter=(0.4, 0.4, 0.4, 0)))
    assert set(np.unique(names)) == {"brightness", "contrast", "saturation", "none"}


def test_grayscale_comes_after_jitter_and_as_often_as_asked():
    names, _ = planned(SIMILAR)
    assert (names[4] == "grayscale").mean() == pytest.approx(0.2, abs=0.015)
    assert not (names[:4] == "grayscale").any()


def test_blur_comes_after_grayscale_as_often_and_as_strong_as_in_simclr():
    names, amounts = planned(BLURRED)
    assert (names[4] == "grayscale").any()
    assert (names[5] == "gaussian_blur").mean() == pytest.approx(0.5, abs=0.015)
    assert not (np.delete(names, 5, axis=0) == "gaussian_blur").any()
    sigmas = amounts[names == "gaussian_blur"]
    assert np.quantile(sigmas, [0, 0.5, 1]) == pytest.approx([0.1, 1.05, 2], abs=0.03)


def test_blur_changes_no_other_draw():
    without, with_blur = planned(RANDOM), planned(BLURRED)
    for before, after in zip(without, with_blur, strict=True):
        assert (np.delete(after, 5, axis=0) == before).all()


def test_draws_without_blur_are_those_of_earlier_versions():
    """What a run of another version drew, this one draws: a run may be resumed after an update."""
    names, amounts = planned(RANDOM, 40)
    drawn = [[*map(str, names[:, i]), *amounts[:, i].round(4).tolist()] for i in range(40)]
    digest = hashlib.sha256(repr(drawn).encode()).hexdigest()
    assert digest == "ec1c21c28a19a8f567d6cc527001248b5f24f2151a81aa2752a3115ddfe342b2"


def test_randaugment_picks_evenly_at_the_asked_strength():
    kind = ViewConfig(crop="resized", policy="randaugment")
    names, amounts = planned(kind, randaugment_magnitude=5.0)
    for stage in names[5:7]:
        found, counts = np.unique(stage, return_counts=True)
        shares = dict(zip(found, counts / len(stage), strict=True))
        assert shares.pop("none") == pytest.approx(0.5, abs=0.02)
        assert len(shares) == 15
        assert list(shares.values()) == pytest.approx([1 / 30] * 15, abs=0.008)
    rotation = amounts[names == "rotate"]
    assert (rotation > 0).mean() == pytest.approx(0.5, abs=0.06)
    assert np.abs(rotation).mean() == pytest.approx(15, abs=0.3)
    assert np.abs(rotation).std() == pytest.approx(1.5, abs=0.2)  # 0.5 of 10 levels, of 30 degrees
    assert amounts[names == "sharpness"].mean() == pytest.approx(1.0, abs=0.02)


def test_randaugment_at_full_strength_and_no_deviation_is_the_published_table():
    kind = ViewConfig(crop="resized", policy="randaugment")
    names, amounts = planned(kind, randaugment_deviation=0.0)
    expected = {
        "rotate": 30, "posterize": 4, "solarize": 256, "solarize_add": 110, "saturation": 1.9,
        "contrast": 1.9, "brightness": 1.9, "sharpness": 1.9, "shear_x": 0.3, "shear_y": 0.3,
        "translate_x": 0.45, "translate_y": 0.45,
    }  # fmt: skip
    for name, amount in expected.items():
        assert np.unique(np.abs(amounts[names == name])) == pytest.approx([amount])


def test_cifar10_policy_has_torchvisions_pairs_shares_and_strengths():
    reference = AutoAugment(AutoAugmentPolicy.CIFAR10)
    space = reference._augmentation_space(10, (SIZE, SIZE))
    kinds, probabilities, amounts = draws._cifar10_table()
    theirs = {ours: name for name, ours in draws._TORCHVISION_NAMES.items()}
    for i, pair in enumerate(reference.policies):
        for j, (name, probability, bin_) in enumerate(pair):
            assert theirs[NAMES[kinds[i, j]]] == name
            assert probabilities[i, j] == probability
            magnitudes, signed = space[name]
            if bin_ is None:
                continue
            magnitude = magnitudes[bin_].item()
            if name.startswith("Translate"):
                magnitude /= SIZE
            is_factor = name in {"Brightness", "Color", "Contrast", "Sharpness"}
            expected = [magnitude, -magnitude if signed else magnitude]
            assert amounts[i, j] == pytest.approx([k + is_factor for k in expected], rel=1e-6)


def test_cifar10_policy_draws_pairs_evenly_and_each_operation_by_its_share():
    names, _ = planned(CIFAR)
    first, second = names[5], names[6]
    assert (first == "invert").mean() == pytest.approx(0.1 / 25, abs=0.002)
    assert (first == "rotate").mean() == pytest.approx(0.7 / 25, abs=0.005)
    both = ((first == "rotate") & (second == "translate_x")).mean()
    assert both == pytest.approx(0.7 * 0.3 / 25, abs=0.003)


def test_cutout_is_a_black_square_cut_at_the_borders():
    white = torch.full((300, 1, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    kind = ViewConfig(crop="padded", cutout=9)
    result = device_views(white, np.arange(300), config(kind), seed=0, epoch=0)[0]
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    centres = draws.cutout_centres(np.arange(300), SIZE, seed=0, epoch=0, view=0)
    assert set(centres.ravel()) == set(range(SIZE))
    for image, (row, column) in zip(result, centres, strict=True):
        square = image[:, max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
        torch.testing.assert_close(square, black[:, None, None].expand_as(square))
        assert (image[0] < 0).sum() == square[0].numel()


def test_views_of_another_shape_are_refused(images):
    views = as_views(images)
    with pytest.raises(ValueError, match=r"views must be uint8 of shape \(N, 1 \+ V, 24, 24, 3\)"):
        normalise(views.float(), config())
    with pytest.raises(ValueError, match=r"got torch.uint8 of shape \(6, 3, 3, 24, 24\)"):
        device_views(views.permute(0, 1, 4, 2, 3), np.arange(6), config(), seed=0, epoch=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_cpus_views_and_is_never_waited_for():
    rng = np.random.default_rng(2)
    views = torch.from_numpy(rng.integers(0, 256, (64, 3, SIZE, SIZE, 3), dtype=np.uint8))
    options = config(CIFAR, BLURRED)
    expected = device_views(views, np.arange(64), options, seed=0, epoch=0)
    on_gpu = views.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = device_views(on_gpu, np.arange(64), options, seed=0, epoch=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = ((result.cpu() - expected).abs() > 0.05).float().mean()
    assert off < 1e-3
