"""The tree of errors; "…": as in the class above, "(given)": chosen where the error is raised.
GatewayError                     status  type                    code
├─ SettingsError                 (never on the wire: start-up and reload)
├─ InvalidRequest                400     invalid_request_error   (given)
│  ├─ Unauthorized               401     …                       invalid_api_key
│  ├─ Forbidden                  403     …                       (given)
│  ├─ NotFound                   404     …                       not_found
│  │  └─ ModelNotFound           404     …                       model_not_found
│  ├─ MethodNotAllowed           405     …                       method_not_allowed
│  ├─ RequestTimeout             408     …                       request_timeout
│  ├─ Conflict                   409     …                       (given: job_ended)
│  ├─ Gone                       410     …                       gone
│  ├─ BodyTooLarge               413     …                       request_too_large
│  └─ UnsupportedMedia           415     …                       unsupported_media_type
├─ Refused                       429     rate_limit_error        (given: queue_full, …)
├─ Unavailable                   503     service_unavailable_error (given: draining, …)
│  └─ Stopping                   503     …                       shutdown
└─ UpstreamFailed                502     upstream_error          (given)
   ├─ UpstreamTimeout            504     upstream_error          upstream_timeout
   └─ UpstreamRefused            (the provider's own status and body, passed on)
"""

from __future__ import annotations


class GatewayError(Exception):
    """A refusal of the gateway, or a failure it reports.

    Args:
        message: for people; never holds a secret, a prompt or an upstream address.
        param: the request field at fault, OpenAI's `param`.
        code: machine-readable reason, OpenAI's `code`.
        retry_after_s: when a retry may help; None when it is not known.
        should_retry: False tells SDKs that a retry cannot help (`x-should-retry`).
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry

    def wire(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object (platform documentation, "Error codes")."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class SettingsError(GatewayError):
    """The settings are unusable; the message names file, path in it, and what was expected."""

    code = "invalid_settings"


class InvalidRequest(GatewayError):
    """A fault of the client's; the base of the 4xx below."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None


class Unauthorized(InvalidRequest):
    status = 401
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    status = 403
    code = "forbidden"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class Conflict(InvalidRequest):
    status = 409
    code = "conflict"


class Gone(InvalidRequest):
    status = 410
    code = "gone"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class Refused(GatewayError):
    """A request that the gateway sheds; the client may retry after `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class Unavailable(GatewayError):
    """A request that the gateway cannot serve now, for want of room, time or an account."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class Stopping(Unavailable):
    """A request that ends because the gateway does."""

    code = "shutdown"

    def __init__(self) -> None:
        super().__init__("The gateway is stopping.")


class UpstreamFailed(GatewayError):
    """A request for which no account gave a usable answer."""

    status = 502
    type = "upstream_error"
    code = "upstream_failed"


class UpstreamTimeout(UpstreamFailed):
    status = 504
    code = "upstream_timeout"


class UpstreamRefused(UpstreamFailed):
    """An error of the provider's own, which the client gets as it is."""

    def __init__(self, status: int, body: bytes, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"the provider answered {status}", retry_after_s=retry_after_s)
        self.status = status
        self.body = body
