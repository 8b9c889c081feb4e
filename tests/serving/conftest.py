"""Programs as users run them: other tests let LLVM optimise less, which rounds more."""

import os

os.environ['XLA_FLAGS'] = ''
