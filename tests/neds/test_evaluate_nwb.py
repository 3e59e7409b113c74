"""`neds evaluate --nwb`: decodes go back into NWB, beside what the session was made of."""

import numpy as np
import pytest

pynwb = pytest.importorskip("pynwb")

from neds.data.nwb import read_nwb  # noqa: E402
from neds.data.nwb_write import write_nwb  # noqa: E402
from neds.report_output import write_nwb_decodes  # noqa: E402
from neds.scoring import Predictions  # noqa: E402
from neds_rt.errors import BadInput  # noqa: E402
from tests.neds.reader_cases import same  # noqa: E402


@pytest.fixture(scope="module")
def decoded(trained):
    from neds.evaluate import decode_part

    _, session, recording, result = trained
    return session, recording, Predictions(pairs=decode_part(result.model, recording, "test"))


@pytest.mark.parametrize("there", [True, False])
def test_decodes_beside_the_session(tmp_path, decoded, there):
    session, recording, predictions = decoded
    path = tmp_path / "a.nwb"
    if there:
        write_nwb(session, path)
    write_nwb_decodes(path, session, recording, "test", predictions, "run, step 9")
    same(session, read_nwb(path))
    ends = (recording.bin[recording.rows("test")] + 1) * recording.bin_size_s
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        module = io.read().processing["decoding"]
        assert set(module.data_interfaces) == {"velocity", "choice", "choice_probability",
                                               "heading"}
        np.testing.assert_array_equal(module["velocity"].data[:], predictions.pairs[0][1])
        np.testing.assert_array_equal(module["velocity"].timestamps[:], ends)
        assert module["velocity"].unit == "cm/s"
        assert "run, step 9" in module["velocity"].description
        probability = module["choice_probability"].data[:]
        np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
        np.testing.assert_array_equal(module["choice"].data[:], probability.argmax(1))
        assert (np.abs(module["heading"].data[:]) <= np.pi).all()
    with pytest.raises(BadInput, match="not there yet"):
        write_nwb_decodes(path, session, recording, "test", predictions, "again")


def test_a_file_that_was_new_does_not_stay_half_made(tmp_path, decoded, monkeypatch):
    session, recording, predictions = decoded
    monkeypatch.setattr("neds.data.nwb_write.write_decodes",
                        lambda *_: (_ for _ in ()).throw(BadInput("x", "y", "z", "w")))
    with pytest.raises(BadInput):
        write_nwb_decodes(tmp_path / "a.nwb", session, recording, "test", predictions, "m")
    assert list(tmp_path.iterdir()) == []
