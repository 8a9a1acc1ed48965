from __future__ import annotations

import msgspec

from gateway.schedule.live_job import LiveJob, Tenant
from gateway.schedule.overload import Grade
from gateway.types import JobClass, SizeBucket
from tests.unit.schedule.build import job, settings, workload

GIVEN = settings(schedule={"max_wait_s": 10.0}).schedule


def test_live_job_weighs_itself_by_its_forecast() -> None:
    """Class, size and reserve follow the forecast."""
    it = LiveJob(job("j", 30, at=5.0), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    assert (it.cls, it.bucket, it.reserve) == (JobClass.INTERACTIVE, SizeBucket.SHORT, 30)
    it.workload = workload(500)
    it.weigh(GIVEN)
    assert (it.cls, it.bucket, it.reserve) == (JobClass.HEAVY, SizeBucket.LONG, 500)
    assert it.charge == 500 + 10 // 4, "the prompt is work, too"


def test_live_job_class_may_be_set_against_the_forecast() -> None:
    """A tenant, route or header overrides the class."""
    it = LiveJob(job("j", 500, class_override=JobClass.INTERACTIVE), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    assert it.cls is JobClass.INTERACTIVE
    assert not it.queue_key.express, "which is for what may be short"


def test_live_job_waits_at_most_so_long_in_all() -> None:
    """A wait is bounded by max_wait_s from the arrival, then by what is left of it, and always by
    the deadline."""
    it = LiveJob(job("j", at=5.0), 0, 1, Tenant("t"))
    it.start_wait(GIVEN, 6.0)
    assert it.expire_s == 15.0
    it.attempts, it.waited_s = 1, 4.0
    it.start_wait(GIVEN, 100.0)
    assert it.expire_s == 106.0
    bound = LiveJob(job("j", at=5.0, deadline_s=7.0), 0, 1, Tenant("t"))
    bound.weigh(GIVEN)
    bound.start_wait(GIVEN, 6.0)
    assert bound.expire_s == 7.0
    bound.start_wait(GIVEN, 6.0, service_s=1.5)
    assert bound.expire_s == 5.5, "it is to be answered by then"


def test_live_job_of_background_work_waits_as_long_as_it_takes() -> None:
    """Background work has no longest wait, for nobody holds a connection open; it has a
    deadline."""
    it = LiveJob(job("j", at=5.0, class_override=JobClass.BACKGROUND), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    it.start_wait(GIVEN, 6.0)
    assert it.expire_s == float("inf")
    it = LiveJob(job("j", class_override=JobClass.BACKGROUND, deadline_s=9.0), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    it.start_wait(GIVEN, 6.0)
    assert it.expire_s == 9.0


def test_live_job_deadline_is_its_own_or_its_tenants_or_its_classs() -> None:
    """The deadline is the request's, else the tenant's, else the class's, else none."""
    given = settings(schedule={"heavy_deadline_s": 30.0}).schedule
    strict = Tenant("strict")
    strict.configure(0, 0, 0, 20.0, 1.0)
    found = []
    for tenant, tokens, own in (
        (strict, 500, 107.0),
        (strict, 500, None),
        (Tenant("t"), 500, None),
        (Tenant("t"), 10, None),
    ):
        it = LiveJob(job("j", tokens, at=100.0, deadline_s=own), 0, 1, tenant)
        it.weigh(given)
        found.append(it.deadline_s)
    assert found == [107.0, 120.0, 130.0, None]
    strict.configure(0, 0, 0, 0.5, 1.0)
    it = LiveJob(job("j", 500, at=100.0), 0, 1, strict)
    it.weigh(given)
    assert it.deadline_s == 100.5, "however near"


def test_live_job_deadline_of_each_class_is_its_own() -> None:
    """Each class's deadline counts from the arrival, the background's too."""
    given = settings(
        schedule={
            "interactive_deadline_s": 10.0,
            "heavy_deadline_s": 20.0,
            "background_deadline_s": 30.0,
        }
    ).schedule
    for cls, after_s in zip(JobClass, (10.0, 20.0, 30.0), strict=True):
        it = LiveJob(job("j", at=5.0, class_override=cls), 0, 1, Tenant("t"))
        it.weigh(given)
        assert it.deadline_s == 5.0 + after_s, cls


def test_tenant_that_is_not_configured_has_no_bounds() -> None:
    """An unknown tenant has no cap, no bound on what waits, no deadline, and the weight of one."""
    it = Tenant("t")
    it.running = it.waiting = it.waiting_tokens = 10**9
    assert (it.capped, it.overfull, it.deadline_s, it.weight) == (False, False, 0.0, 1.0)


def test_tenant_is_capped_at_its_cap_and_overfull_beyond_its_bounds() -> None:
    """A bound in items or tokens may be filled, a cap of jobs in flight is full when it is
    reached."""
    it = Tenant("t")
    it.configure(2, 3, 100, 0.0, 1.0)
    seen = []
    for it.running, it.waiting, it.waiting_tokens in ((1, 3, 100), (2, 4, 100), (3, 3, 101)):
        seen.append((it.capped, it.overfull))
    assert seen == [(False, False), (True, True), (True, True)]


def test_live_job_may_use_the_express_where_it_may_be_short() -> None:
    """A job is express from the chance of a short answer by which it is interactive."""
    for p_short, express in ((0.29, False), (0.3, True)):
        it = LiveJob(job("j", class_override=JobClass.INTERACTIVE), 0, 1, Tenant("t"))
        it.workload = msgspec.structs.replace(workload(100), p_short=p_short)
        it.weigh(GIVEN)
        assert it.queue_key.express is express
    it = LiveJob(job("j", 10, class_override=JobClass.HEAVY), 0, 1, Tenant("t"))
    it.weigh(GIVEN)
    assert not it.queue_key.express, "which is the interactive's"


def test_live_job_keeps_sizes_apart_where_any_of_them_is_capped() -> None:
    """One capped size is enough to queue all sizes apart."""
    for size in SizeBucket:
        capped = settings(schedule={"tier_caps": {size.value: 3}}).schedule
        it = LiveJob(job("j", 100), 0, 1, Tenant("t"))
        it.weigh(capped)
        assert it.queue_key.bucket is SizeBucket.MEDIUM, size


def test_live_job_grades_share_a_queue_until_the_ladder_tells_them_apart() -> None:
    """Short and medium are never deferred and share a queue; sizes are kept apart only where they
    are capped."""
    capped = settings(schedule={"tier_caps": {"long": 3}}).schedule
    seen: dict[str, list[tuple[Grade, SizeBucket | None]]] = {"free": [], "capped": []}
    for tokens in (10, 200, 1000, 2000):
        it = LiveJob(job("j", tokens, class_override=JobClass.HEAVY), 0, 1, Tenant("t"))
        for name, schedule in (("free", GIVEN), ("capped", capped)):
            it.weigh(schedule)
            seen[name].append((it.queue_key.grade, it.queue_key.bucket))
    grades = [Grade.MEDIUM, Grade.MEDIUM, Grade.LONG, Grade.HUGE]
    assert seen["free"] == [(grade, None) for grade in grades]
    assert [bucket for _, bucket in seen["capped"]] == [
        SizeBucket.SHORT,
        SizeBucket.MEDIUM,
        SizeBucket.LONG,
        SizeBucket.LONG,
    ]
