"""RandStainNA: colours as drawn, detail where it was, the same draw for the same state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from skimage.color import rgb2lab
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.data.phantom import tissue_phantom
from bundle.data.stain import DEVIATIONS, MEANS, RandStainNA, RandStainNAd, recoloured


@pytest.fixture(scope="module")
def image() -> Tensor:
    return tissue_phantom(96, 128, torch.Generator().manual_seed(0))


def statistics(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    lab = rgb2lab(image.permute(1, 2, 0).numpy())
    return lab.mean((0, 1)), lab.std((0, 1))


def test_an_image_takes_on_the_statistics_it_is_given(image: Tensor) -> None:
    """Reinhard's transfer: with the wrong statistics the augmentation shows colours that no stain has."""
    own_mean, own_deviation = statistics(image)
    mean, deviation = np.array([68.0, 14.0, -12.0]), 0.8 * own_deviation
    got_mean, got_deviation = statistics(recoloured(image, mean, deviation))
    assert np.allclose(got_mean, mean, atol=0.7) and np.allclose(got_deviation, deviation, rtol=0.06)
    unchanged = recoloured(image, own_mean, own_deviation)
    assert torch.allclose(unchanged, image, atol=0.01)


def test_detail_stays_where_it_is(image: Tensor) -> None:
    """A transform that blurs would label defocus that the optics did not make: it is affine in each LAB channel."""
    stained = recoloured(image, np.array([72.0, 15.0, -15.0]), np.array([14.0, 9.0, 7.0]))
    before, after = (rgb2lab(x.permute(1, 2, 0).numpy())[..., 0] for x in (image, stained))
    unclipped = ((stained > 0.002) & (stained < 0.998)).all(0).numpy()
    assert unclipped.mean() > 0.8
    assert np.corrcoef(before[unclipped], after[unclipped])[0, 1] > 0.9999


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_blank_patch_only_changes_colour(value: float) -> None:
    """Glass has no deviation: dividing by it gave NaN in other implementations."""
    blank = torch.full((3, 40, 24), value)
    stained = RandStainNA(prob=1.0).set_random_state(0)(blank)
    assert bool(torch.isfinite(stained).all()) and float(stained.std((1, 2)).max()) < 1e-4


def test_output_keeps_type_and_range(image: Tensor) -> None:
    """Float for users, uint8 for the training pipeline: 1.2 must end as white, never wrap to 51."""
    for strength in (1.0, 6.0):
        transform = RandStainNA(prob=1.0, strength=strength).set_random_state(2)
        for _ in range(4):
            stained = transform(image)
            assert stained.dtype == torch.float32 and stained.shape == image.shape
            assert float(stained.min()) >= 0 and float(stained.max()) <= 1
    eight_bit = recoloured(to_uint8(image), np.array([95.0, 5.0, -5.0]), np.array([15.0, 9.0, 9.0]))
    exact = recoloured(image, np.array([95.0, 5.0, -5.0]), np.array([15.0, 9.0, 9.0]))
    assert eight_bit.dtype == torch.uint8
    assert float((eight_bit.float() / 255 - exact).abs().mean()) < 1 / 255
    assert int(eight_bit[:, int(exact[1].argmax()) // 128, int(exact[1].argmax()) % 128].min()) > 150


def test_the_random_state_decides_the_colours(image: Tensor) -> None:
    """A run that is resumed must see the colours of the unbroken run; the global generators play no part."""
    results = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(results))
        transform = Compose([RandStainNAd(keys=["label"], prob=1.0)]).set_random_state(seed)
        results.append(transform({"label": image})["label"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_record_and_plain_form_draw_alike(image: Tensor) -> None:
    """Two implementations would drift apart."""
    plain = RandStainNA(prob=1.0).set_random_state(9)(image)
    record = RandStainNAd(keys="label", prob=1.0).set_random_state(9)({"label": image, "mpp": 0.25})
    assert torch.equal(plain, record["label"]) and record["mpp"] == 0.25


def test_all_keys_of_a_record_get_the_same_target(image: Tensor) -> None:
    """Image and label recoloured apart would teach the network to recolour."""
    record = RandStainNAd(keys=["image", "label"], prob=1.0).set_random_state(1)({"image": image, "label": image})
    assert torch.equal(record["image"], record["label"]) and not torch.equal(record["label"], image)


def test_the_share_of_changed_images_is_prob(image: Tensor) -> None:
    """prob 0 must leave validation data alone."""
    small = image[:, :16, :16]
    never, half = RandStainNA(prob=0.0).set_random_state(0), RandStainNA(prob=0.5).set_random_state(0)
    assert all(never(small) is small for _ in range(20))
    assert 20 < sum(half(small) is not small for _ in range(80)) < 60


def test_draws_follow_the_measured_statistics() -> None:
    """The defaults are those of the training fields: draws with another spread leave the range of real stains."""
    transform = RandStainNA().set_random_state(0)
    drawn = np.stack([np.stack(transform.drawn_statistics()) for _ in range(4000)])
    for draws, table in zip((drawn[:, 0], drawn[:, 1]), (MEANS, DEVIATIONS)):
        assert np.allclose(draws.mean(0), np.array(table)[:, 0], atol=0.8)
        assert np.allclose(draws.std(0), np.array(table)[:, 1], rtol=0.05)


def test_wrong_tables_and_images_are_refused(image: Tensor) -> None:
    """One sentence at construction, not a broadcast in the thousandth step."""
    with pytest.raises(ValueError, match="three channels"):
        RandStainNA(means=((1.0, 2.0),))
    with pytest.raises(ValueError, match="most_stretch 1 or more"):
        RandStainNA(most_stretch=0.5)
    with pytest.raises(ValueError, match=r"shape \(3, H, W\)"):
        recoloured(image[:1], np.zeros(3), np.ones(3))
