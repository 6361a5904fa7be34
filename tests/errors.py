"""What a call raises, in a form that can be compared with what the same call raises in torch."""

import pytest


def message(function, *args):
    """(type, text) of the error; modules of tgrad.nn are named as torch's."""
    with pytest.raises(Exception) as caught:
        function(*args)
    return type(caught.value), str(caught.value).replace("tgrad.nn.", "torch.nn.modules.")
