"""How one task is learned: the inner loop, with explicit state and without its own gradient."""

from innerloop.adaptation._run import run as run
from innerloop.adaptation._run import run_from as run_from
from innerloop.adaptation.base import Adaptation as Adaptation
from innerloop.adaptation.base import Info as Info
from innerloop.adaptation.base import InnerGradient as InnerGradient
from innerloop.adaptation.base import InnerRule as InnerRule
from innerloop.adaptation.base import InnerStep as InnerStep
from innerloop.adaptation.base import Loop as Loop
from innerloop.adaptation.base import Origin as Origin
from innerloop.adaptation.direct import DirectAdaptation as DirectAdaptation
from innerloop.adaptation.direct import Procedure as Procedure
from innerloop.adaptation.gradient_descent import GradientDescent as GradientDescent
from innerloop.adaptation.gradient_descent import GradientDescentState as GradientDescentState
from innerloop.adaptation.mini_batches import MiniBatches as MiniBatches
from innerloop.adaptation.minimise import Minimise as Minimise
from innerloop.adaptation.minimise import MinimiseInfo as MinimiseInfo
