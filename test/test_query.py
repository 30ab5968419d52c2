"""When the policy may look: the timing that makes the robot see what imagination saw."""
import numpy as np

from world_gymnast_ros.control.query_gate import ImageWatch, QueryGate, QueryRules

S = 1_000_000_000
T0 = 1_000 * S


def active_gate() -> QueryGate:
    gate = QueryGate(QueryRules())
    gate.set_active(True, T0)
    return gate


def may(gate: QueryGate, stamp_ns: int, now_ns: int | None = None, steady_ns: int = 0, text: str = "go left") -> bool:
    return not gate.refusal(stamp_ns, stamp_ns if now_ns is None else now_ns, steady_ns, text)


def test_nothing_before_the_arm_takes_chunks_or_without_an_instruction() -> None:
    gate = QueryGate(QueryRules())
    assert not may(gate, T0)
    gate.set_active(True, T0)
    assert may(gate, T0)
    assert not may(gate, T0, text="  ")
    gate.set_active(False, T0)
    assert not may(gate, T0 + S)


def test_a_frame_from_before_arming_is_not_used() -> None:
    assert not may(active_gate(), T0 - 1)


def test_next_look_is_after_the_last_action_came_to_rest() -> None:
    gate = active_gate()
    gate.published(7, 0)
    for index in range(4):
        assert not may(gate, T0 + S)
        sent_ns = T0 + index * S // 5
        gate.played(7, index, 4, False, sent_ns, 0)
    assert not may(gate, sent_ns + round(0.179 * S))
    assert may(gate, sent_ns + round(0.180 * S))


def test_a_clock_stepped_back_blinds_for_one_period_only() -> None:
    gate = active_gate()
    gate.published(7, 0)
    gate.played(7, 3, 4, False, T0, 0)
    now_ns = T0 - 100 * S
    assert not may(gate, now_ns)  # it may show the arm on its way
    assert not may(gate, now_ns + round(0.179 * S))
    assert may(gate, now_ns + round(0.180 * S))
    assert not may(gate, now_ns)


def test_a_refused_action_ends_the_chunk() -> None:
    gate = active_gate()
    gate.published(7, 0)
    gate.played(7, 0, 4, True, T0, 0)
    assert may(gate, T0 + S)


def test_steps_of_another_chunk_do_not_count() -> None:
    gate = active_gate()
    gate.published(7, 0)
    gate.played(6, 3, 4, False, T0, 0)
    assert not may(gate, T0 + S // 2)


def test_a_lost_chunk_is_asked_for_again() -> None:
    gate = active_gate()
    gate.published(7, 0)
    assert not may(gate, T0 + S, steady_ns=S - 1)
    assert may(gate, T0 + S, steady_ns=S)


def test_a_chunk_in_play_is_not_lost_however_long_it_is() -> None:
    gate = active_gate()
    gate.published(7, 0)
    for index in range(20):
        gate.played(7, index, 21, False, T0, index * S // 5)
    assert not may(gate, T0 + 4 * S, steady_ns=4 * S)


def test_an_old_frame_is_not_used() -> None:
    gate = active_gate()
    assert may(gate, T0, now_ns=T0 + S // 2)
    assert not may(gate, T0, now_ns=T0 + S // 2 + 1)


def test_arming_again_forgets_the_chunk_in_play() -> None:
    gate = active_gate()
    gate.published(7, 0)
    gate.set_active(False, T0 + 1)
    gate.set_active(True, T0 + S)
    assert not may(gate, T0 + S - 1)
    assert may(gate, T0 + S)


def test_without_an_arm_every_chunks_worth_of_frames_brings_a_look() -> None:
    gate = active_gate()
    looks = []
    for i in range(20):
        stamp_ns = T0 + i * S // 5 + (i * 7919 % 13 - 6) * 1_000_000  # 5 Hz with jitter of 6 ms
        if may(gate, max(stamp_ns, T0)):
            looks.append(i)
            gate.published(i, 0)
            gate.played_alone(stamp_ns, 4)
    assert looks == [0, 4, 8, 12, 16]


def test_a_frame_from_the_future_is_refused() -> None:
    gate = active_gate()
    assert may(gate, T0 + S, now_ns=T0 + S - S // 25)
    assert "in the future" in gate.refusal(T0 + S, T0 + S - S // 10, 0, "go left")


def test_a_camera_that_repeats_one_image_is_told_by_what_the_arm_moved() -> None:
    watch, image = ImageWatch(), np.zeros((4, 6, 3), np.uint8)
    assert not watch.refusal(image)
    watch.moved(0.02)
    assert not watch.refusal(image.copy())  # an arm that hardly moved may look the same
    watch.moved(0.02)
    assert "frozen" in watch.refusal(image) and "frozen" in watch.refusal(image)
    other = image.copy()
    other[0, 0, 0] = 1
    assert not watch.refusal(other)
    assert not watch.refusal(image)  # the way counts from the change on
