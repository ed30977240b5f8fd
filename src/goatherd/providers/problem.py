"""What went wrong at a store, before it is known for which call.

Used by the clients of Vault and Kubernetes, which know no secret ids. Rules: the text holds names, statuses and such
words of the server as cannot quote a value; never a token.
"""

from __future__ import annotations

from goatherd.errors import ProviderError, ThrottledError
from goatherd.providers.base import Call


class StoreProblem(Exception):  # noqa: N818 - not an error that a caller of a provider meets
    """An error of ours that still lacks provider, secret and operation.

    Attributes:
        kind: The class that it becomes.
        hint: What to do next, where the class's own hint is not the best one.
        retry_after: The server's hint in seconds, for `ThrottledError`.
        final: Whether another attempt is pointless although the class is retryable.
    """

    def __init__(
        self,
        kind: type[ProviderError],
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint
        self.retry_after = retry_after
        self.final = final

    def of(self, call: Call) -> ProviderError:
        """Return it as the error of one call."""
        error = call.error(self.kind, str(self), hint=self.hint, final=self.final)
        if isinstance(error, ThrottledError):
            error.retry_after = self.retry_after
        return error
