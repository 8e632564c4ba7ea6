"""For tests of your own: do your model and data keep the laws that exact resume rests on?

`helios.testing.strategies`, which needs hypothesis, draws plans and states for property tests.
"""

from helios.testing.check import check_laws as check_laws
from helios.testing.report import LawResult as LawResult
from helios.testing.report import Report as Report
