import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resrepro import interruption
from resrepro.configuration.schema import Recipe
from resrepro.data import Dataset
from resrepro.data.batches import (
    EVALUATION_BATCH,
    Batches,
    augmentation,
    batch_indices,
    crop_and_flip,
    mean_of,
    on_device,
)
from resrepro.errors import Interrupted

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**63 - 1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(batch_size: int = 16, padding: int = 4, flip: bool = True) -> Recipe:
    return Recipe("test", 100, batch_size, 0.1, 0.9, 1e-4, [0.5], padding, flip)


def noise(count: int, test_count: int = 5, channels: int = 3, size: int = 8) -> Dataset:
    rng = np.random.default_rng([count, test_count, channels, size])
    return Dataset(
        rng.integers(0, 256, (count, channels, size, size), np.uint8),
        rng.integers(0, 10, count),
        rng.integers(0, 256, (test_count, channels, size, size), np.uint8),
        rng.integers(0, 10, test_count),
        classes=10,
        digest="",
    )


def make(data: Dataset, recipe: Recipe, seed: int = 0, mean: str = "pixel") -> Batches:
    return Batches(data, mean, recipe, seed, CPU)


# The order ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 50), st.integers(0, 12))
def test_the_batches_are_one_stream_of_permuted_epochs(
    seed: int, count: int, batch_size: int, iterations: int
) -> None:
    batches = [batch_indices(seed, i, batch_size, count) for i in range(iterations + 1)]
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        if len(epoch) == count:
            assert sorted(epoch) == list(range(count))
        else:
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(count))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
def test_the_stream_does_not_depend_on_the_batch_size(
    seed: int, count: int, one: int, other: int
) -> None:
    streams = [
        np.concatenate([batch_indices(seed, i, size, count) for i in range(-(-100 // size))])[:100]
        for size in (one, other)
    ]
    np.testing.assert_array_equal(*streams)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.permutations(range(12)))
def test_a_batch_does_not_depend_on_what_was_drawn_before(seed: int, order: list[int]) -> None:
    in_order = {i: batch_indices(seed, i, 7, 20) for i in range(12)}
    for iteration in order:
        batch_indices(seed + 1, iteration, 7, 20)
        np.testing.assert_array_equal(batch_indices(seed, iteration, 7, 20), in_order[iteration])


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(batch_indices(seed, epoch, 50, 50)) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100
    assert tuple(range(50)) not in orders


def test_the_first_image_of_an_epoch_is_any_image_alike() -> None:
    first = [batch_indices(0, epoch, 10, 10)[0] for epoch in range(2000)]
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > 1e-4


def test_an_iteration_far_into_a_run_costs_no_more_than_the_first() -> None:
    batch = batch_indices(0, 10**9, 128, 50_000)
    assert len(np.unique(batch)) == 128


# The augmentation --------------------------------------------------------------------------------


def draws(padding: int, flip: bool, images: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """The offsets and flips of so many images, of batches of 128."""
    parts = [augmentation(seed, i, 128, padding, flip) for i in range(images // 128)]
    top, left, flipped = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return top, left, flipped


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_all_crops_of_the_padded_image_and_of_its_mirror_image_are_equally_likely(
    padding: int,
) -> None:
    side = 2 * padding + 1
    top, left, flipped = draws(padding, flip=True, images=128 * 300)
    cells = np.bincount((flipped * side + top) * side + left, minlength=2 * side**2)
    assert len(cells) == 2 * side**2
    assert cells.min() > 0
    assert stats.chisquare(cells).pvalue > 1e-4


def test_the_draws_of_neighbours_in_a_batch_and_in_time_have_nothing_to_do_with_each_other() -> (
    None
):
    for numbers in draws(4, flip=True, images=128 * 300):
        grid = numbers.reshape(300, 128).astype(float)
        for here, there in ((grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1])):
            correlation = np.corrcoef(here.ravel(), there.ravel())[0, 1]
            assert abs(correlation) < 4 / np.sqrt(here.size)


def test_within_a_batch_each_image_has_its_own_draws() -> None:
    for iteration in range(20):
        triples = np.stack(augmentation(0, iteration, 128, 4, True))
        # Of 128 drawn from 162, some 88 differ.
        assert len(np.unique(triples, axis=1).T) > 70


def test_no_image_is_flipped_where_that_is_off_and_the_crops_stay_the_same() -> None:
    with_flips, without = draws(4, True, 1280), draws(4, False, 1280)
    assert not without[2].any()
    np.testing.assert_array_equal(with_flips[:2], without[:2])


def test_without_padding_there_is_one_crop() -> None:
    top, left, flipped = draws(0, True, 1280)
    assert not top.any()
    assert not left.any()
    assert set(flipped) == {0, 1}


def test_other_seeds_and_iterations_augment_otherwise() -> None:
    seen = {
        np.stack(augmentation(seed, iteration, 32, 4, True)).tobytes()
        for seed in range(10)
        for iteration in range(10)
    }
    assert len(seen) == 100
    again = np.stack(augmentation(3, 4, 32, 4, True)).tobytes()
    assert again in seen


def naive_crop_and_flip(
    images: np.ndarray, top: np.ndarray, left: np.ndarray, flip: np.ndarray, padding: int
) -> np.ndarray:
    n, channels, height, width = images.shape
    result = np.empty_like(images)
    for i in range(n):
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = images[i]
        if flip[i]:
            padded = padded[:, :, ::-1]
        result[i] = padded[:, top[i] : top[i] + height, left[i] : left[i] + width]
    return result


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 4),
    st.integers(0, 2**32 - 1),
)
def test_crops_and_flips_are_those_of_one_image_after_the_other(
    shape: tuple[int, int, int, int], padding: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal(shape, np.float32)
    top, left = rng.integers(0, 2 * padding + 1, (2, shape[0]))
    flip = rng.integers(0, 2, shape[0])
    arrays = images, top, left, flip
    cropped = crop_and_flip(*map(torch.from_numpy, arrays), padding=padding)
    np.testing.assert_array_equal(cropped.numpy(), naive_crop_and_flip(*arrays, padding))


def test_the_images_that_are_cropped_stay_as_they_are() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    ones = torch.ones(4, dtype=torch.int64)
    for padding in (0, 2):
        crop_and_flip(images, ones * padding, ones * 0, ones, padding).mul_(2)
        assert torch.equal(images, before)


# The mean ----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), SEEDS)
def test_the_mean_is_that_of_numpy(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    shape = count, channels, height, width
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    exact = images.astype(np.float64)
    pixel, channel = mean_of(images, "pixel"), mean_of(images, "channel")
    assert pixel.dtype == channel.dtype == np.float32
    assert pixel.shape == (channels, height, width)
    assert channel.shape == (channels, 1, 1)
    np.testing.assert_allclose(pixel, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(channel.ravel(), exact.mean(axis=(0, 2, 3)), rtol=1e-6)


def test_the_mean_of_many_images_is_exact() -> None:
    # In float32 the sum would stop growing by the right amounts long before the end.
    images = np.full((200_000, 1, 2, 2), 255, np.uint8)
    images[::2] = 254
    assert mean_of(images, "pixel").tolist() == [[[254.5, 254.5], [254.5, 254.5]]]
    assert mean_of(images, "channel").tolist() == [[[254.5]]]


# The batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["pixel", "channel"])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (2, False), (0, True), (4, True)])
def test_a_batch_is_the_chosen_images_less_the_mean_cropped_and_flipped(
    mean: str, padding: int, flip: bool
) -> None:
    data = noise(50)
    batches = make(data, recipe(16, padding, flip), seed=5, mean=mean)
    for iteration in (0, 3, 1000):
        x, labels = batches(iteration)
        chosen = batch_indices(5, iteration, 16, 50)
        centred = data.train_images[chosen].astype(np.float32) - mean_of(data.train_images, mean)
        drawn = augmentation(5, iteration, 16, padding, flip)
        np.testing.assert_allclose(
            x.numpy() * 255, naive_crop_and_flip(centred, *drawn, padding), atol=1e-4
        )
        np.testing.assert_array_equal(labels.numpy(), data.train_labels[chosen])
        assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_the_border_is_of_the_means_colour() -> None:
    # Of images that are all alike nothing is left but the border, which must not show.
    data = noise(1)
    x, _ = make(data, recipe(64, padding=4))(0)
    assert torch.equal(x, torch.zeros_like(x))


def test_as_much_of_an_image_is_border_as_its_offsets_say() -> None:
    images = np.stack([np.full((3, 8, 8), grey, np.uint8) for grey in (100, 200)])
    data = Dataset(images, np.array([0, 1]), images, np.array([0, 1]), classes=2, digest="")
    x, labels = make(data, recipe(64, padding=3), mean="channel")(7)
    top, left, _ = augmentation(0, 7, 64, 3, True)
    inside = (8 - np.abs(top - 3)) * (8 - np.abs(left - 3))
    np.testing.assert_array_equal((x != 0).sum(dim=(2, 3))[:, 0].numpy(), inside)
    shade = torch.where(labels == 1, 50 / 255, -50 / 255)
    torch.testing.assert_close(x.sum(dim=(1, 2, 3)), shade * torch.from_numpy(3 * inside))


def test_a_data_set_smaller_than_a_batch_gives_full_batches() -> None:
    data = noise(3)
    batches = make(data, recipe(8, padding=0, flip=False))
    images = np.concatenate([batches(i)[0].numpy() for i in range(3)])
    assert len(images) == 24
    _, counts = np.unique(images, axis=0, return_counts=True)
    assert counts.tolist() == [8, 8, 8]


def test_the_same_iteration_is_the_same_batch_and_another_seed_another() -> None:
    data = noise(50)
    one, same, other = (make(data, recipe(), seed) for seed in (0, 0, 1))
    for iteration in (5, 0, 63_999, 5):
        x, labels = one(iteration)
        again, labels_again = same(iteration)
        assert torch.equal(x, again)
        assert torch.equal(labels, labels_again)
        assert not torch.equal(x, other(iteration)[0])
    assert not torch.equal(one(5)[0], one(6)[0])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "count", [1, EVALUATION_BATCH - 1, EVALUATION_BATCH, EVALUATION_BATCH + 1, 1234]
)
def test_unaugmented_are_all_images_of_a_split_once_and_in_order(split: str, count: int) -> None:
    data = noise(count, 7, size=4) if split == "train" else noise(7, count, size=4)
    images = data.train_images if split == "train" else data.test_images
    labels = data.train_labels if split == "train" else data.test_labels
    parts = list(make(data, recipe()).unaugmented(split))
    assert max(len(part) for _, part in parts) <= EVALUATION_BATCH
    centred = images.astype(np.float32) - mean_of(data.train_images, "pixel")
    np.testing.assert_allclose(torch.cat([x for x, _ in parts]).numpy() * 255, centred, atol=1e-4)
    np.testing.assert_array_equal(torch.cat([part for _, part in parts]).numpy(), labels)


def test_a_signal_ends_an_evaluation_between_two_batches() -> None:
    batches = make(noise(2 * EVALUATION_BATCH, size=2), recipe())

    def evaluate() -> None:
        with interruption.watched():
            parts = batches.unaugmented("train")
            next(parts)
            os.kill(os.getpid(), signal.SIGUSR1)
            next(parts)
            pytest.fail("the evaluation went on")

    with pytest.raises(Interrupted):
        evaluate()


def test_batches_lie_in_memory_as_the_net_wants_them() -> None:
    batches = make(noise(50), recipe())
    for x in (batches(0)[0], next(batches.unaugmented("test"))[0]):
        assert x.is_contiguous(memory_format=torch.channels_last)


# The device --------------------------------------------------------------------------------------


class Elsewhere(TorchDispatchMode):
    """Lists the operations that compute with a tensor which is not on the device."""

    transfers = torch.ops.aten.lift_fresh, torch.ops.aten._to_copy  # from numpy, to the device

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.found = device, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {
            leaf.device
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, torch.Tensor)
        }
        if func.overloadpacket not in self.transfers and devices - {self.device}:
            self.found.append(str(func))
        return result


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (0, False)])
@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_all_is_computed_on_the_device(padding: int, flip: bool, mean: str) -> None:
    meta = torch.device("meta")
    with Elsewhere(meta) as elsewhere:
        batches = Batches(noise(50), mean, recipe(16, padding, flip), 0, meta)
        made = [batches(0), *batches.unaugmented("train"), *batches.unaugmented("test")]
    assert elsewhere.found == []
    assert {tensor.device for pair in made for tensor in pair} == {meta}
    assert {x.dtype for x, _ in made} == {torch.float32}
    assert [tuple(x.shape) for x, _ in made] == [(16, 3, 8, 8), (50, 3, 8, 8), (5, 3, 8, 8)]


def test_an_operation_elsewhere_would_be_seen() -> None:
    with Elsewhere(torch.device("meta")) as elsewhere:
        torch.arange(3) + torch.ones(3)
    assert "aten.add.Tensor" in elsewhere.found


# Where the data set lies -------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_where_the_data_lie_changes_no_bit(mean: str) -> None:
    data = noise(50, EVALUATION_BATCH + 1)
    here, there = (
        Batches(data, mean, recipe(), 3, CPU, resident) for resident in ("device", "host")
    )
    for iteration in (0, 1, 2, 9, 9, 4):
        for ours, theirs in zip(here(iteration), there(iteration), strict=True):
            assert torch.equal(ours, theirs)
            assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
    for split in ("train", "test"):
        for part, other in zip(here.unaugmented(split), there.unaugmented(split), strict=True):
            assert all(map(torch.equal, part, other))


def test_data_in_host_memory_stay_where_they_are(tmp_path: Path) -> None:
    """Mapped from a prepared file, they need not even fit into memory."""
    data = noise(50)
    np.save(tmp_path / "images.npy", data.train_images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="c")
    meta = torch.device("meta")
    batches = Batches(replace(data, train_images=mapped), "pixel", recipe(), 0, meta, "host")
    assert batches.train[0].data_ptr() == mapped.ctypes.data
    made = [batches(0), *batches.unaugmented("train")]
    assert {tensor.device for pair in made for tensor in pair} == {meta}


@pytest.mark.parametrize(
    ("resident", "images", "here"),
    [
        ("auto", 400, True),
        ("auto", 401, False),
        ("device", 10**6, True),
        ("host", 1, False),
    ],
)
def test_data_lie_on_a_gpu_if_they_leave_half_of_it_free(
    resident: str, images: int, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 800, 1000

    monkeypatch.setattr("torch.cuda.mem_get_info", mem_get_info)
    gpu = torch.device("cuda", 1)
    assert on_device(images, resident, gpu) is here
    assert asked == [gpu] * (resident == "auto")
    assert on_device(images, resident, CPU) is (resident != "host")


def test_crops_and_mirror_images_are_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    functional = pytest.importorskip("torchvision.transforms.functional")
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 12, 12, generator=draws)
    top, left, flip = (torch.from_numpy(part) for part in augmentation(0, 7, 64, 4, flip=True))
    ours = crop_and_flip(images, top, left, flip, 4)
    for i, image in enumerate(images):
        original = functional.hflip(image) if flip[i] else image
        padded = functional.pad(original, [4])
        theirs = functional.crop(padded, int(top[i]), int(left[i]), 12, 12)
        assert torch.equal(ours[i], theirs)
    # RandomCrop(padding=4) draws from as many places.
    drawn = {transforms.RandomCrop.get_params(padded, (12, 12))[0] for _ in range(400)}
    many = augmentation(0, 0, 4000, 4, flip=True)[0]
    assert drawn == set(many.tolist()) == set(range(9))
