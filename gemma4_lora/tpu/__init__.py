"""What a config needs on a TPU, known before paying for one."""

from gemma4_lora.tpu._chips import Chip
from gemma4_lora.tpu._compile import Memory
from gemma4_lora.tpu._compile import TooLarge
from gemma4_lora.tpu._errors import PlanError
from gemma4_lora.tpu._make import plan
from gemma4_lora.tpu._plan import Plan
from gemma4_lora.tpu._plan_numbers import Bound
from gemma4_lora.tpu._sweep import Sweep
from gemma4_lora.tpu._sweep import sweep
from gemma4_lora.tpu.program._cost import Cost
from gemma4_lora.tpu.program._exchanges import Collective

__all__ = [
    'Bound',
    'Chip',
    'Collective',
    'Cost',
    'Memory',
    'plan',
    'Plan',
    'PlanError',
    'Sweep',
    'sweep',
    'TooLarge',
]
