from __future__ import annotations

from gateway.schedule.entry import Entry, Tenant
from gateway.types import JobClass, SizeBucket
from tests.unit.schedule.build import job, settings, workload

GIVEN = settings(schedule={"max_wait_s": 10.0}).schedule


def test_entry_weighs_itself_by_its_forecast() -> None:
    """Class, bucket, reserve, key; the arrival stays."""
    it = Entry(job("j", 30, at=5.0), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    short_key = it.key
    assert (it.cls, it.bucket, it.reserve) == (JobClass.INTERACTIVE, SizeBucket.SHORT, 30)
    it.workload = workload(500)
    it.weigh(GIVEN)
    assert (it.cls, it.bucket, it.reserve) == (JobClass.HEAVY, SizeBucket.LONG, 500)
    assert 5.0 < short_key < it.key


def test_entry_class_may_be_set_against_the_forecast() -> None:
    """A tenant, route or header overrides it."""
    it = Entry(job("j", 500, class_override=JobClass.INTERACTIVE), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    assert it.cls is JobClass.INTERACTIVE


def test_entry_waits_at_most_so_long_in_all() -> None:
    """max_wait_s from arrival, then what is left of it; the deadline bounds every wait."""
    it = Entry(job("j", at=5.0), 0, 1, Tenant("t"))
    it.start_wait(GIVEN, 6.0)
    assert it.expire_s == 15.0
    it.attempts, it.waited_s = 1, 4.0
    it.start_wait(GIVEN, 100.0)
    assert it.expire_s == 106.0
    bound = Entry(job("j", at=5.0, deadline_s=7.0), 0, 1, Tenant("t"))
    bound.start_wait(GIVEN, 6.0)
    assert bound.expire_s == 7.0
