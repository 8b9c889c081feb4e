"""What every task of rows has to say."""

import inspect

import pytest

from gemma4_lora.data import _chat_task
from gemma4_lora.data import _preference_task
from gemma4_lora.data import _row_task


def test_a_task_that_says_nothing_of_its_rows_cannot_be_made():
  with pytest.raises(TypeError, match="'_check', '_in_keys', 'fields'"):
    _row_task.RowTask()


@pytest.mark.parametrize(
    "task", [_chat_task.ChatTask, _preference_task.PreferenceTask]
)
def test_tasks_leave_nothing_open(task):
  assert not inspect.isabstract(task)
