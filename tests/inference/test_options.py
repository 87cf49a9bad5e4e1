"""Options: the names that editors see are those that a fit takes."""

from typing import get_type_hints

import pytest

from pyro_nas.inference import svi
from pyro_nas.inference.options import FitOptions, Options
from pyro_nas.models import Model, guides


def test_editors_see_the_options_that_there_are():
    assert get_type_hints(FitOptions) == get_type_hints(Options)


def test_a_misspelt_option_is_named(small_space, small_data):
    model = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match=r"option: expected one of .* got 'epoch'. Did you mean 'epochs'"):
        svi.fit(model, guides.MeanField(model), small_data, epoch=3)
