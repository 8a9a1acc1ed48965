"""The settings for the scheduler: as they are, or without any limit.

`schedule.bypass` and `schedule.mode = "observe"` relay every request when it comes. They use the
same scheduler with limits that never bind, since a second code path would go untested. Limits and
windows go on learning without limiting, so that they are ready when scheduling begins.

All other functions stay: authentication, a tenant's own caps, retries, ejection of a broken
account, a refused key, RPM and TPM as configured (not as in headers). A 429 rests no account, as
it would not without a gateway.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.settings.schema import Settings, TierCaps

ENDLESS = 10**9


def relays_at_once(settings: Settings) -> bool:
    """True where no request waits for the scheduler."""
    return settings.schedule.bypass or settings.schedule.mode == "observe"


def effective(settings: Settings) -> Settings:
    """The settings from which the scheduler and the accounts are built."""
    return wide_open(settings) if relays_at_once(settings) else settings


def wide_open(settings: Settings) -> Settings:
    """The same accounts, tenants and retries, with limits that never bind."""
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
