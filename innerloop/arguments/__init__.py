"""What an argument must be, declared in one line; errors are written from the declaration.

A field of a module says it where other fields have their default:

```python
class EvolutionStrategies(MetaGradient):  # a CheckedModule
    pairs: int = at_least(1)
    sigma: float = positive()
    chunk: int | None = optional(at_least(1))
```

An argument of a function, or a field of a named tuple or dataclass, says it in a decorator:

```python
@checked(steps=at_least(1), chunk=optional(at_least(1)))
def train(problem, steps, chunk=None): ...
```

A value of another kind raises `StructureError`, which names the argument, its value, what it must
be, and a call that works. Every kind takes the keywords `default`, `static` and `kw_only` of a
field; without a default the argument is required. `optional` has the default None.
"""

from innerloop.arguments.checking import CheckedModule as CheckedModule
from innerloop.arguments.checking import checked as checked
from innerloop.arguments.kinds import at_least as at_least
from innerloop.arguments.kinds import between as between
from innerloop.arguments.kinds import each as each
from innerloop.arguments.kinds import either as either
from innerloop.arguments.kinds import flag as flag
from innerloop.arguments.kinds import floating_dtype as floating_dtype
from innerloop.arguments.kinds import function as function
from innerloop.arguments.kinds import instance as instance
from innerloop.arguments.kinds import interval as interval
from innerloop.arguments.kinds import number as number
from innerloop.arguments.kinds import one_of as one_of
from innerloop.arguments.kinds import optional as optional
from innerloop.arguments.kinds import or_none as or_none
from innerloop.arguments.kinds import path as path
from innerloop.arguments.kinds import positive as positive
from innerloop.arguments.kinds import random_key as random_key
from innerloop.arguments.kinds import with_methods as with_methods
from innerloop.arguments.requirement import Requirement as Requirement
from innerloop.arguments.requirement import kind as kind
from innerloop.arguments.requirement import require as require
from innerloop.arguments.requirement import requirement_of as requirement_of
