"""The fault injection campaigns against the store, with as many trials as one likes.

The tests run them with small numbers; a torture run imports them with large ones:

    from tests.trainer.store import campaigns
    print(campaigns.power_loss(trials=1000, seed=7))

| campaign | fault | how many |
|---|---|---|
| ``process_death(seed)`` | the process dies at every operation | exhaustive |
| ``power_loss(trials, seed)`` | the power fails at every operation | ``trials`` losses at each |
| ``operations_failed(seed)`` | every operation fails with each error | exhaustive |
| ``corruption(trials, seed)`` | bytes of a checkpoint are changed | ``trials`` changes |
| ``removal(seed)`` | a reader, or a crash, at every operation of a removal | exhaustive |
| ``lock_contest(rounds, seed)`` | two processes want one lock | ``rounds`` contests |

Every function makes its own temporary folder, returns `Counts`, and raises `Violation`, which
names the place and the seed, at the first trial that breaks what must hold. A seed gives the same
faults every time; where nothing is random it has no effect.
"""

from __future__ import annotations

from tests.trainer.store.bench import Counts as Counts
from tests.trainer.store.contests import lock_contest as lock_contest
from tests.trainer.store.crashes import power_loss as power_loss
from tests.trainer.store.crashes import process_death as process_death
from tests.trainer.store.damage import corruption as corruption
from tests.trainer.store.damage import removal as removal
from tests.trainer.store.disk_errors import operations_failed as operations_failed
from tests.trainer.store.judging import Violation as Violation
