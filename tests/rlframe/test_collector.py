"""The collecting thread: whoever waits sees what it kept, and what it raised."""

import queue

import pytest

from rlframe.collector import Collector


class Service:
    def __init__(self):
        self.finished = queue.Queue()

    def collect(self, timeout_s):
        try:
            found = self.finished.get(timeout=min(timeout_s, 0.02))
        except queue.Empty:
            return []
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def kept():
    return []


@pytest.fixture
def collector(service, kept):
    made = Collector("test", service.collect, kept.extend)
    made.start()
    yield made
    made.close()


def test_who_waits_is_woken_by_what_is_kept(service, kept, collector):
    for number in range(3):
        service.finished.put([number])
    with collector.changed:
        collector.wait_for(lambda: len(kept) == 3)
    assert kept == [0, 1, 2]


def test_what_the_thread_raises_is_raised_by_who_waits(service, kept, collector):
    service.finished.put(ValueError("lost"))
    with collector.changed, pytest.raises(ValueError, match="lost"):
        collector.wait_for(lambda: False)
    with pytest.raises(ValueError, match="lost"):
        collector.check()


def test_what_keep_raises_is_raised_too(service, collector):
    service.finished.put([1])
    collector._keep = lambda found: 1 / 0
    with collector.changed, pytest.raises(ZeroDivisionError):
        collector.wait_for(lambda: False)


def test_nothing_is_kept_after_close(service, kept, collector):
    collector.close()
    service.finished.put([1])
    assert not collector._thread.is_alive()
    assert kept == []
