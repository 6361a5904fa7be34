"""What a call raises, in a form that can be compared with what the same call raises in torch on the CPU."""

import pytest


def message(function, *args):
    """(type, text) of the error; modules of tgrad.nn and types of tensors are named as torch's there."""
    with pytest.raises(Exception) as caught:
        function(*args)
    text = str(caught.value).replace("tgrad.nn.", "torch.nn.modules.").replace("torch.cuda.", "torch.")
    return type(caught.value), text
