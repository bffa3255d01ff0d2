"""The published files' names and shapes, and the weights that tests draw for them."""

import math

import pytest
import torch

from tests.support.seeded_weights import grey512, keys_hash, read_keys, seeded, sines512


@pytest.mark.parametrize(
    ("name", "tensors", "values", "expected"),
    [
        ("musiq", 248, 27_125_825, "40407b83c930407d"),
        ("clip_rn50", 489, 102_060_440, "e5f0681b1583add7"),
        ("fid_inception", 566, 23_885_486, "760681d791cb624e"),
        ("resnet18_110", 181, 25_640_807, "c6323f0cd87ae194"),
        ("fan_wflw", 1137, 24_207_364, "169909dc868338ef"),
    ],
)
def test_a_key_list_is_the_published_files(
    name: str, tensors: int, values: int, expected: str
) -> None:
    """The lists in tests/fixtures hold the names and shapes of the published files, all of them."""
    keys = read_keys(name)
    assert (len(keys), sum(math.prod(shape) for shape in keys.values())) == (tensors, values)
    assert keys_hash(keys) == expected


def test_a_tensor_depends_on_the_seed_and_its_name_alone() -> None:
    """What is drawn is the same in any company, and another under another seed."""
    keys = {"a.weight": (3, 2), "b.bias": (4,)}
    alone = seeded({"b.bias": (4,)}, 1)["b.bias"]
    assert torch.equal(seeded(keys, 1)["b.bias"], alone)
    assert not torch.equal(seeded(keys, 2)["b.bias"], alone)


def test_the_scale_of_a_tensor_is_by_its_name() -> None:
    """Each rule of the scales is met once: mean and deviation of many values."""
    expected = {
        "bn.running_var": (1.0, 12**-0.5),
        "bn.running_mean": (0, 0.1),
        "bn.weight": (1, 0.1),
        "fc.bias": (0, 0.05),
        "visual.positional_embedding": (0, 0.02),
        "token_embedding.weight": (0, 0.02),
        "x.position_emb": (0, 0.02),
        "x.scale_emb": (0, 0.02),
        "x.cls": (0, 0.02),
        "other": (0, 0.02),
    }
    one_row = {"bn.running_var", "bn.running_mean", "bn.weight", "fc.bias", "other"}
    keys = {key: (40_000,) if key in one_row else (200, 200) for key in expected}
    for key, value in seeded(keys, 7).items():
        mean, deviation = expected[key]
        assert value.mean().item() == pytest.approx(mean, abs=0.02 * deviation)
        assert value.std().item() == pytest.approx(deviation, rel=0.02)
    matrices = {"text_projection": (400, 100), "fc.weight": (100, 400), "c.weight": (50, 8, 10, 10)}
    drawn = seeded(matrices, 7)
    for key, deviation in (("text_projection", 0.05), ("fc.weight", 0.05), ("c.weight", 0.05)):
        assert drawn[key].std().item() == pytest.approx(deviation, rel=0.03)


def test_scalars_and_counters_keep_their_kinds() -> None:
    """`logit_scale` is ln 100, a counter of batches an integer zero."""
    drawn = seeded({"logit_scale": (), "bn.num_batches_tracked": ()}, 103)
    assert drawn["logit_scale"].item() == pytest.approx(math.log(100))
    assert drawn["bn.num_batches_tracked"].dtype == torch.int64


def test_the_pictures_are_as_the_formula_says() -> None:
    """The corner of the waves is rint(127.5 + 127.5 sin(phase)); the grey is 128."""
    assert sines512()[0, :, 0, 0].tolist() == [128, 235, 243]
    assert sines512().shape == grey512().shape == (1, 3, 512, 512)
    assert grey512().unique().tolist() == [128]
