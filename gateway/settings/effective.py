"""What the scheduler is given: the settings as they are, or wide open.

`schedule.bypass` and `schedule.mode = "observe"` relay every request when it comes. That is not
another code path, which would rot until the day it is needed: it is the same scheduler with
room without end. Limits and windows go on learning and limit nothing, so that what was seen is
known when scheduling begins.

What stays has nothing to do with scheduling: authentication, a tenant's own caps, retries,
ejection of a broken account, a refused key, RPM and TPM as configured (not as headers tell). A
429 rests nothing: without a gateway it would not either.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.settings.schema import Settings, TierCaps

ENDLESS = 10**9


def relays_at_once(settings: Settings) -> bool:
    return settings.schedule.bypass or settings.schedule.mode == "observe"


def effective(settings: Settings) -> Settings:
    """What the scheduler and the accounts are to be built from."""
    return wide_open(settings) if relays_at_once(settings) else settings


def wide_open(settings: Settings) -> Settings:
    """The same accounts, tenants and retries, with room without end."""
    schedule = replace(
        settings.schedule,
        ordering="fcfs",
        policy="adaptive",
        borrow=True,
        interactive_inflight_tokens=ENDLESS,
        heavy_inflight_tokens=ENDLESS,
        tier_caps=TierCaps(),
        shed=False,
        interactive_deadline_s=0.0,
        heavy_deadline_s=0.0,
        background_deadline_s=0.0,
    )
    balance = replace(settings.balance, window="watch", max_backoff_s=1e-6)
    tenants = [replace(tenant, deadline_s=0.0) for tenant in settings.tenants]
    return replace(settings, schedule=schedule, balance=balance, tenants=tenants)
