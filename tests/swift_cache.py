"""What a Swift keeps in memcached, in the memory of its proxy server, for lack of the former.

Without it, whether account and container exist is asked anew with each request: half of its time.
"""

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

Application = Callable[[dict[str, Any], Any], Any]


class Cache:
    """As Swift's client of memcached, as far as it is asked here: values are copies."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, float]] = {}

    def get(self, key: str, raise_on_error: bool = False) -> Any:
        text, until = self._kept.get(key, ("null", 0.0))
        return json.loads(text) if monotonic() < until else None

    def set(self, key: str, value: Any, time: float = 0, **options: Any) -> None:
        self._kept[key] = (json.dumps(value), monotonic() + time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        self._kept.pop(key, None)


def factory(config: dict[str, str], **own: str) -> Callable[[Application], Application]:
    """For a pipeline: `paste.filter_factory`."""
    cache = Cache()

    def around(application: Application) -> Application:
        def call(request: dict[str, Any], respond: Any) -> Any:
            request["swift.cache"] = cache
            return application(request, respond)

        return call

    return around
