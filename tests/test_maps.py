"""Maps as tensors, against einsum, formulas written out, scipy and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from camify.boxes import component_boxes
from camify.maps import _class_maps_by_products, class_maps, identity_error, normalize, select, upsample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_maps_are_weighted_sums_of_channels(dtype):
    features, weight = torch.randn(3, 7, 5, 4, dtype=dtype), torch.randn(6, 7, dtype=dtype)
    maps = class_maps(features, weight)
    expected = torch.einsum("nchw,kc->nkhw", features.double(), weight.double())
    assert maps.dtype == dtype
    assert maps.shape == (3, 6, 5, 4)
    torch.testing.assert_close(maps.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert (maps < 0).any()  # no ReLU


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_class_maps_on_a_gpu_are_the_same(memory_format):
    """There they are products of matrices, as the linear layer is: no other rounding than that of the logits."""
    features, weight = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    features = features.to(memory_format=memory_format)
    maps = _class_maps_by_products(features, weight)
    torch.testing.assert_close(maps, class_maps(features, weight))
    assert maps.is_contiguous()


def test_class_maps_are_differentiable_in_both_arguments():
    features = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(class_maps, (features, weight))


def half_pixel_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centers and clamped borders, written out."""
    h, w = image.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            fy = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            fx = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = math.floor(fy), math.floor(fx)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = fy - y0, fx - x0
            top = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            bottom = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            out[y, x] = top * (1 - dy) + bottom * dy
    return out


@pytest.mark.parametrize("size", [(14, 14), (28, 21), (9, 17), (4, 3), (2, 2), (1, 5)])
def test_upsampling_is_bilinear_with_half_pixel_centers(size):
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    big = upsample(maps, size)
    assert big.shape == (2, 3, *size)
    for n in range(2):
        for k in range(3):
            expected = half_pixel_bilinear(maps[n, k].numpy(), *size)
            np.testing.assert_allclose(big[n, k].numpy(), expected, atol=1e-12)


def test_upsampling_takes_any_leading_dimensions():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(upsample(maps[0, 0], (8, 8)), upsample(maps, (8, 8))[0, 0])
    assert torch.equal(upsample(maps[0], (8, 8)), upsample(maps, (8, 8))[0])
    assert upsample(maps[:0], (8, 8)).shape == (0, 3, 8, 8)
    torch.testing.assert_close(upsample(torch.full((2, 3), 2.5), (7, 9)), torch.full((7, 9), 2.5))


@pytest.mark.parametrize("cells", [(7, 7), (1, 1), (5, 32), (33, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_upsampling_is_interpolation_of_any_kind_of_number(cells, dtype):
    maps = torch.randn(2, 3, *cells).to(dtype).flip(-1)
    big = upsample(maps, (40, 37))
    expected = F.interpolate(maps, size=(40, 37), mode="bilinear")
    assert big.dtype == dtype
    torch.testing.assert_close(big, expected, rtol=0, atol=3e-6 if dtype == torch.float32 else 0)
    assert torch.equal(upsample(maps, cells), maps)  # to the bit


def test_upsampling_is_as_exact_under_autocast_and_has_the_gradient_of_interpolation():
    with torch.inference_mode():  # the weights are kept for later: also for training
        upsample(torch.randn(1, 6, 11), (23, 29))
    maps, weights = torch.randn(2, 6, 11, requires_grad=True), torch.randn(2, 23, 29)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        big = upsample(maps, (23, 29))
    (gradient,) = torch.autograd.grad((big * weights).sum(), maps)
    expected = F.interpolate(maps[None], size=(23, 29), mode="bilinear")[0]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), maps)
    torch.testing.assert_close(big, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-4)


def test_upsampling_can_be_traced_for_any_size():
    class Upsampled(torch.nn.Module):
        def forward(self, maps, like):
            return upsample(maps, (like.shape[-2], like.shape[-1]))

    maps, like = torch.randn(2, 5, 6), torch.zeros(20, 30)
    dims = {"maps": {0: torch.export.Dim("n")}, "like": {0: torch.export.Dim("h"), 1: torch.export.Dim("w")}}
    exported = torch.export.export(Upsampled(), (maps, like), dynamic_shapes=dims).module()
    more, large = torch.randn(3, 5, 6), torch.zeros(31, 17)
    torch.testing.assert_close(exported(more, large), upsample(more, (31, 17)), rtol=0, atol=3e-6)


def test_normalising_scales_each_map_to_its_own_range():
    maps = torch.randn(4, 3, 5, 6, dtype=torch.float64) * 10
    heat = normalize(maps)
    for n in range(4):
        for k in range(3):
            one = maps[n, k].numpy()
            np.testing.assert_allclose(heat[n, k].numpy(), (one - one.min()) / (one.max() - one.min()), atol=1e-14)
    assert torch.equal(heat.amin((-2, -1)), torch.zeros(4, 3, dtype=torch.float64))
    assert torch.equal(heat.amax((-2, -1)), torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(normalize(maps * 3 - 7), heat)
    assert torch.equal(normalize(maps[0, 0]), heat[0, 0])


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-30])
def test_a_constant_map_has_no_heat(value):
    maps = torch.stack([torch.full((4, 4), value), torch.arange(16.0).view(4, 4)])
    maps.requires_grad_(True)
    heat = normalize(maps)
    assert torch.equal(heat[0], torch.zeros(4, 4))
    assert torch.equal(heat[1], torch.arange(16.0).view(4, 4) / 15)
    heat.sum().backward()
    assert maps.grad.isfinite().all()


def test_the_rounding_of_upsampling_is_no_heat():
    """Bilinear weights do not add up to one exactly: a constant of 2.5 comes out as 2.5 and 2.5000002."""
    constants = torch.randn(300, 1, 1, 1).expand(300, 1, 14, 14) * 100
    for size in ((224, 224), (97, 61), (15, 40)):
        big = upsample(constants, size)
        assert torch.equal(normalize(big), torch.zeros_like(big))
    faint = torch.full((8, 8), 1000.0)
    faint[2, 3] += 0.01
    assert normalize(faint)[2, 3] == 1


def test_selecting_takes_one_class_per_image():
    maps = torch.randn(3, 5, 2, 2)
    assert torch.equal(select(maps, torch.tensor([4, 0, 2])), torch.stack([maps[0, 4], maps[1, 0], maps[2, 2]]))
    assert select(maps[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 2, 2)


def test_identity_error_is_the_largest_relative_difference():
    maps, bias = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    logits = maps.mean((2, 3)) + bias
    assert identity_error(logits, maps, bias) < 1e-15
    wrong = logits.clone()
    wrong[1, 2] += 0.25
    assert identity_error(wrong, maps, bias) == pytest.approx(0.25 / float(wrong.abs().max()), rel=1e-12)
    assert identity_error(logits.float(), maps.float(), bias.float()) < 1e-5
    assert identity_error(torch.zeros(2, 3), torch.zeros(2, 3, 4, 4), torch.zeros(3)) == 0
    assert identity_error(torch.zeros(2, 3), maps, bias) > 1e30


@pytest.mark.parametrize("where", ["logits", "maps", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_numbers_never_pass_for_an_identity(where, value):
    tensors = {"logits": torch.zeros(2, 3), "maps": torch.zeros(2, 3, 4, 4), "bias": torch.zeros(3)}
    tensors[where].view(-1)[1] = value
    error = identity_error(tensors["logits"], tensors["maps"], tensors["bias"])
    assert not error <= 1e-4


# ---------------------------------------------------------------- boxes


EIGHT = np.ones((3, 3), int)


def scipy_components(mask: np.ndarray) -> list[tuple[tuple[int, int, int, int], int]]:
    """Box (xyxy, exclusive) and pixels with filled holes of every 8-connected component."""
    labels, count = scipy.ndimage.label(mask, structure=EIGHT)
    found = []
    for index in range(1, count + 1):
        component = labels == index
        ys, xs = np.where(component)
        # what an 8-connected border encloses is what 4-connected background cannot leave
        filled = scipy.ndimage.binary_fill_holes(component)
        found.append(((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), int(filled.sum())))
    return found


def random_masks():
    generator = np.random.default_rng(0)
    for density in (0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        for height, width in ((1, 1), (1, 9), (7, 1), (5, 6), (16, 16), (33, 20)):
            for _ in range(6):
                yield generator.random((height, width)) < density
    for _ in range(20):  # smooth blobs, as maps have
        yield scipy.ndimage.gaussian_filter(generator.normal(size=(32, 32)), 2) > 0.05


def test_boxes_are_those_of_scipys_components():
    for mask in random_masks():
        for kind in (mask, mask.astype(np.uint8), mask.astype(np.uint8) * 255):
            boxes = component_boxes(kind)
            assert sorted(map(tuple, boxes.tolist())) == sorted(box for box, _ in scipy_components(mask))
            assert boxes.shape == (len(boxes), 4)


def test_the_largest_component_has_the_most_pixels_with_its_holes_filled():
    for mask in random_masks():
        components = scipy_components(mask)
        (box,) = component_boxes(mask, largest=True) if components else [None]
        if components:
            most = max(size for _, size in components)
            assert tuple(box) in [candidate for candidate, size in components if size == most]


def test_pieces_inside_holes_are_components_of_their_own():
    mask = np.zeros((12, 12), bool)
    mask[1:11, 1:11] = True
    mask[3:9, 3:9] = False
    mask[5:7, 5:7] = True
    assert sorted(component_boxes(mask).tolist()) == [[1, 1, 11, 11], [5, 5, 7, 7]]
    assert component_boxes(mask, largest=True).tolist() == [[1, 1, 11, 11]]


def test_diagonal_neighbors_are_connected_and_thin_shapes_count():
    assert component_boxes(np.eye(5, dtype=bool)).tolist() == [[0, 0, 5, 5]]
    line = np.zeros((6, 9), bool)
    line[2, 1:8] = True
    line[4:6, 0:2] = True
    assert component_boxes(line, largest=True).tolist() == [[1, 2, 8, 3]]  # 7 pixels against 4


def test_an_empty_mask_has_no_boxes():
    for largest in (True, False):
        boxes = component_boxes(np.zeros((4, 5), bool), largest=largest)
        assert boxes.shape == (0, 4)
    assert component_boxes(np.ones((4, 5), bool)).tolist() == [[0, 0, 5, 4]]


def test_the_mask_is_not_written_to():
    mask = (np.arange(100).reshape(10, 10) % 7 < 3).astype(np.uint8)
    before = mask.copy()
    component_boxes(mask, largest=True)
    assert np.array_equal(mask, before)
