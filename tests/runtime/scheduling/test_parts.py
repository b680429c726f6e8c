"""The parts that need no engine: contents, slots, kept images, turns, options."""

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.content import EMPTY, Content, common_length, hash_image
from runtime.scheduling.errors import SchedulerError
from runtime.scheduling.fairness import PrefillTurns
from runtime.scheduling.features import FeatureCache
from runtime.scheduling.options import Deadlines, SchedulerOptions
from runtime.scheduling.slots import SlotTable
from tests.runtime.byte_model import MEDIA, make_image, make_prompt


def content(*ids: int, images: tuple[PatchedImage, ...] = ()) -> Content:
    return Content.of_prompt(make_prompt(*ids, images=images))


ONE, OTHER = make_image(2, 4, 0.25), make_image(2, 4, 0.5)
WIDE, TALL = make_image(2, 4, 0.5), make_image(4, 2, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        (content(1, 2, 3), content(1, 2, 3), 3),
        (content(1, 2, 3), content(1, 2, 4, 5), 2),
        (content(1, 2), content(1, 2, 3), 2),
        (content(7), content(1), 0),
        (EMPTY, content(1), 0),
        (content(1, MEDIA, MEDIA, 3, images=(ONE,)), content(1, MEDIA, MEDIA, 3, images=(ONE,)), 4),
        (
            content(1, MEDIA, MEDIA, 3, images=(ONE,)),
            content(1, MEDIA, MEDIA, 3, images=(OTHER,)),
            1,
        ),
        (content(MEDIA, MEDIA, images=(WIDE,)), content(MEDIA, MEDIA, images=(TALL,)), 0),
        (
            content(MEDIA, MEDIA, 9, MEDIA, MEDIA, images=(ONE, OTHER)),
            content(MEDIA, MEDIA, 9, MEDIA, MEDIA, images=(ONE, ONE)),
            3,
        ),
        (content(5, 1, images=()), content(5, MEDIA, MEDIA, images=(ONE,)), 1),
    ],
)
def test_the_common_beginning_ends_at_another_id_or_other_pixels(
    first: Content, second: Content, length: int
) -> None:
    assert common_length(first, second) == common_length(second, first) == length


def test_a_slot_that_was_filled_to_the_middle_of_an_image_shares_that_much_of_it() -> None:
    prompt = content(1, MEDIA, MEDIA, 3, images=(ONE,))
    part = prompt.with_ids(prompt.ids[:2])
    assert common_length(part, prompt) == 2
    assert common_length(prompt.with_ids(prompt.ids[:1]), prompt) == 1
    assert prompt.with_ids(prompt.ids[:1]).images == ()


def test_an_image_is_named_by_its_pixels_and_their_shape() -> None:
    keys = {hash_image(image) for image in (ONE, OTHER, TALL, make_image(2, 2, 0.5))}
    assert len(keys) == 4
    assert hash_image(WIDE) == hash_image(OTHER)
    strided = PatchedImage(patches=np.repeat(ONE.patches, 2, axis=2)[:, :, ::2])
    assert hash_image(strided) == hash_image(ONE)


def test_a_prompt_is_never_reused_whole() -> None:
    slots = SlotTable(1)
    slots.give_back(slots.take(content(1, 2, 3)).slot, content(1, 2, 3, 4, 5))
    assert slots.take(content(1, 2, 3)).num_reused == 2


def test_a_prompt_that_goes_on_with_most_of_a_slot_takes_it_in_place() -> None:
    slots = SlotTable(2)
    slots.give_back(slots.take(content(1)).slot, content(1, 2, 3, 4))
    lease = slots.take(content(1, 2, 9, 9, 9))
    assert lease == (0, 2)
    assert slots.num_kept_tokens == 0


def test_a_prompt_that_shares_little_with_a_slot_leaves_it_alone() -> None:
    slots = SlotTable(2)
    slots.give_back(slots.take(content(1)).slot, content(1, 2, 3, 4, 5))
    assert slots.take(content(1, 2, 9)) == (1, 0)
    assert slots.num_kept_tokens == 5
    assert slots.find(content(1, 2, 9)) == (0, 2)


def test_an_empty_slot_is_taken_first_and_then_the_longest_unused() -> None:
    slots = SlotTable(3)
    for first in (10, 20):
        lease = slots.take(content(first))
        slots.give_back(lease.slot, content(first, 1))
    slots.touch(0)
    taken = [slots.take(content(first)).slot for first in (50, 60, 70)]
    assert taken == [2, 1, 0]


def test_a_slot_that_was_lost_or_lent_twice_is_found() -> None:
    slots = SlotTable(2)
    slots.take(content(1))
    slots.check()
    slots._used.clear()
    with pytest.raises(SchedulerError, match=r"free \[1\] and used \[\] are not the 2"):
        slots.check()
    slots._used.update({0, 1})
    with pytest.raises(SchedulerError, match=r"free \[1\] and used \[0, 1\]"):
        slots.check()


def rows(num: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros((num, 4), dtype=np.float32)  # 16 bytes each


def test_kept_images_stay_within_their_budget_and_the_longest_unused_goes_first() -> None:
    cache = FeatureCache(max_bytes=80)
    for key in (b"a", b"b"):
        cache.keep(key, rows(2))
    assert cache.find(b"a") is not None
    cache.keep(b"c", rows(2))
    assert cache.size_bytes == 64
    assert [cache.find(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    cache.keep(b"large", rows(6))
    assert cache.find(b"large") is None
    assert cache.size_bytes == 64
    cache.keep(b"d", rows(5))
    assert cache.size_bytes == 80
    assert cache.find(b"a") is cache.find(b"c") is None


class Prompt:
    def __init__(self, num_left: int) -> None:
        self.num_left = num_left


def test_no_prompt_starves_however_many_shorter_ones_come() -> None:
    turns, long = PrefillTurns(), Prompt(10)
    count = 0
    while long.num_left:
        turns.choose([long, Prompt(1), Prompt(1)]).num_left -= 1
        count += 1
    assert count <= 20


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"3 problems: max_queued.*0; chunk.*image_cache_bytes"):
        SchedulerOptions(max_queued=0, chunk_beside_decoding=0, image_cache_bytes=-1)
    with pytest.raises(InputError, match=r"2 problems: queue_s.*0; total_s.*nan"):
        Deadlines(queue_s=0, total_s=float("nan"))
