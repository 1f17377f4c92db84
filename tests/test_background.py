"""A consumer in a thread of its own: order, bounds, and what happens when either side fails."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sora_runtime.background import Background
from sora_runtime.errors import EngineError, OutputError
from sora_runtime.video import VideoWriter


def test_everything_is_consumed_in_order_by_the_end_of_the_block() -> None:
    consumed: list[int] = []
    threads: set[str] = set()

    def consume(item: int) -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.002)
        consumed.append(item)

    with Background(consume) as background:
        for item in range(20):
            background.put(item)
    assert consumed == list(range(20)) and threads == {"sora-background"}


def test_the_next_item_is_made_while_the_last_is_consumed() -> None:
    """Without a thread beside it, the second `put` would never be reached."""
    second = threading.Event()
    with Background(lambda item: item == 0 and second.wait(30)) as background:
        background.put(0)
        background.put(1)
        second.set()
    assert second.is_set()


def test_no_more_than_depth_items_wait() -> None:
    release, taken, offered = threading.Event(), threading.Event(), []

    def consume(_: int) -> None:
        taken.set()
        assert release.wait(30)

    def produce(background: Background[int]) -> None:
        for item in range(8):
            background.put(item)
            offered.append(item)

    with Background(consume, depth=2) as background:
        producer = threading.Thread(target=produce, args=(background,))
        producer.start()
        assert taken.wait(30)
        time.sleep(0.2)
        assert len(offered) == 3, "one is consumed and two wait"
        release.set()
        producer.join(30)
    assert len(offered) == 8


def fail(item: int) -> None:
    if item == 2:
        raise OSError("full")


def test_a_failure_reaches_the_producer_and_nothing_is_consumed_after_it() -> None:
    offered = 0
    with pytest.raises(OSError, match="full"), Background(fail) as background:
        for item in range(10_000):
            background.put(item)
            offered += 1
    assert offered < 10_000


def test_a_failure_of_the_last_item_is_raised_at_the_end() -> None:
    with pytest.raises(OSError, match="full"), Background(fail) as background:
        background.put(2)


def test_what_waits_is_dropped_when_the_producer_fails_and_the_consumer_has_ended_by_then() -> None:
    consumed: list[int] = []
    begun = threading.Event()

    def consume(item: int) -> None:
        begun.set()
        time.sleep(0.1)
        consumed.append(item)

    with pytest.raises(KeyError), Background(consume, depth=3) as background:
        for item in range(3):
            background.put(item)
        assert begun.wait(30)
        raise KeyError
    assert consumed == [0]
    time.sleep(0.3)
    assert consumed == [0]


INTERRUPTED = """
import signal, threading, time
from sora_runtime.background import Background

running, sent, done = threading.Event(), threading.Event(), []

def consume(_):
    running.set()
    assert sent.wait(30)  # the block cannot be over before the interrupt, however slow the machine is
    time.sleep(0.3)
    done.append(True)

def interrupt():
    assert running.wait(30)
    signal.pthread_kill(main, signal.SIGINT)
    sent.set()

main = threading.get_ident()
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
try:
    with Background(consume) as background:
        background.put(0)
except KeyboardInterrupt:
    print("interrupted", done)
"""


def test_an_interrupt_at_the_end_waits_for_the_item_under_way() -> None:
    """What the consumer writes to is closed after the block; it must not be used any more then.

    In a process of its own: some library that other tests load leaves the main thread with an alternate signal stack
    that is gone, and the first signal then ends the worker.
    """
    command = [sys.executable, "-c", INTERRUPTED]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.stdout, ran.returncode) == ("interrupted [True]\n", 0), ran.stderr


def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), np.uint8)


def test_a_video_encoded_beside_its_decoder_is_the_same_to_the_byte(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "after.mp4", width=64, height=64, fps=12) as writer:
        writer.write(frames())
    beside = VideoWriter(tmp_path / "beside.mp4", width=64, height=64, fps=12)
    with beside as writer, Background(writer.write) as background:
        for start in range(0, 25, 4):
            background.put(frames()[start : start + 4])
    assert (tmp_path / "beside.mp4").read_bytes() == (tmp_path / "after.mp4").read_bytes()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_failure_on_either_side_leaves_the_file_that_was_there(
    tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "clip.mp4"
    target.write_text("an earlier clip")
    to_yuv, made = VideoWriter._to_yuv, []

    def full(self: VideoWriter, image: np.ndarray) -> object:
        made.append(1)
        if side == "encoder" and len(made) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return to_yuv(self, image)

    monkeypatch.setattr(VideoWriter, "_to_yuv", full)
    expected = pytest.raises(OutputError, match="no space") if side == "encoder" else pytest.raises(EngineError)
    writer = VideoWriter(target, width=64, height=64, fps=12)
    with expected, writer, Background(writer.write) as background:
        for start in range(0, 25, 4):
            background.put(frames()[start : start + 4])
            if side == "decoder" and start == 12:
                raise EngineError("the decoder failed")
    assert made and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert target.read_text() == "an earlier clip"
