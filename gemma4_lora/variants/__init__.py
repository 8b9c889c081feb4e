"""LoRA variants, and their table.

Every variant has A and B. `LoRA` adds `scale * (x @ A) @ B`; others have more
leaves. To add a variant, write its file, add it to `_table.ALL`, and give
`g4.nn.LoRA` the argument that chooses it.
"""

from gemma4_lora.variants._leaf import A
from gemma4_lora.variants._leaf import B
from gemma4_lora.variants._leaf import Leaf
from gemma4_lora.variants._leaf import OwnLeaf
from gemma4_lora.variants._plain import PLAIN
from gemma4_lora.variants._table import ARGUMENTS
from gemma4_lora.variants._table import arguments
from gemma4_lora.variants._table import chosen
from gemma4_lora.variants._table import from_base
from gemma4_lora.variants._table import owner
from gemma4_lora.variants._table import owners
from gemma4_lora.variants._variant import Call
from gemma4_lora.variants._variant import Variant
