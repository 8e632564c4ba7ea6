"""What a check of the laws found, law by law."""

from __future__ import annotations

import msgspec

from helios.errors import LawError


class LawResult(msgspec.Struct, frozen=True):
    """What was found about one law.

    Args:
        law: its name.
        holds: whether it held; None if it could not be checked.
        culprit: what breaks it, or why it could not be checked; empty if it held.
    """

    law: str
    holds: bool | None
    culprit: str = ""


class Report(msgspec.Struct, frozen=True):
    """What was found about every law; ``str`` of it is a table.

    Args:
        results: one for each law.

    Example:
        >>> report = Report((LawResult("pure", False, "self.count changed from 0 to 1"),))
        >>> print(report)
        law   holds  culprit
        pure  no     self.count changed from 0 to 1
        >>> report["pure"].holds, [result.law for result in report.broken]
        (False, ['pure'])
    """

    results: tuple[LawResult, ...]

    @property
    def broken(self) -> tuple[LawResult, ...]:
        """The laws that do not hold; those that could not be checked are not among them."""
        return tuple(result for result in self.results if result.holds is False)

    def __getitem__(self, law: str) -> LawResult:
        for result in self.results:
            if result.law == law:
                return result
        raise KeyError(f"{law!r}; the laws are {', '.join(r.law for r in self.results)}")

    def raise_if_broken(self) -> None:
        """Do nothing if no law is broken.

        Raises:
            LawError: if one is; the message is the whole table.
        """
        if self.broken:
            names = ", ".join(result.law for result in self.broken)
            raise LawError(f"broken: {names}\n{self}")

    def __str__(self) -> str:
        words = {True: "yes", False: "no", None: "?"}
        rows = [("law", "holds", "culprit")]
        rows += [(r.law, words[r.holds], r.culprit) for r in self.results]
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(f"{law:{width}}  {holds:5}  {why}".rstrip() for law, holds, why in rows)
