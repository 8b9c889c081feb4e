"""A plan that was made, and one that was refused."""

import dataclasses

from gemma4_lora import g4
from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _compile
from gemma4_lora.tpu.program import _cost
from gemma4_lora.tpu.program import _exchanges

_GIB = 2**30

PLAN = g4.tpu.Plan(
    topology='v6e:2x4',
    chip=_chips.TPUS['v6e'],
    num_devices=8,
    batch=16,
    length=2048,
    argument_bytes={
        'weights': 8 * _GIB,
        'lora': _GIB // 8,
        'optimizer': _GIB // 4,
        'batch': 2**15,
        'other': 4,
    },
    memory=_compile.Memory(
        arguments=9 * _GIB,
        outputs=2**20,
        temporaries=4 * _GIB,
        in_use=12 * _GIB,
    ),
    too_large=None,
    cost=_cost.Cost(
        flops=9.18e12,
        bytes=3.2e11,
        flops_once=9.18e12,
        bytes_once=1.6e11,
        unknown_loops=1,
        kernels=105,
    ),
    collectives=(
        _exchanges.Collective(
            kind='all-gather', count=1234, bytes=2 * 10**9, wire_bytes=1.75e9
        ),
    ),
    trace_seconds=12.0,
    compile_seconds=345.0,
    advice=('batch: <b>larger</b>',),
    notes=('a & b',),
)
REFUSED = dataclasses.replace(
    PLAN,
    memory=None,
    cost=None,
    collectives=(),
    too_large=_compile.TooLarge(
        wanted=40 * _GIB, available=31 * _GIB, message='Ran out of memory'
    ),
)
