"""Archives that numpy's own reader takes at their word, or reads until memory ends."""

import io
import zipfile

import numpy as np
import pytest

from pangu_ms.data import npz_file


def npy(array, **options):
    made = io.BytesIO()
    np.save(made, array, **options)
    return made.getvalue()


def archive(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def test_what_numpy_wrote_is_read(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "t": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.empty((0, 3)),
        "word": np.array("\u6625"),
        "empty": np.array(""),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = npz_file.read(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert list(npz_file.read(tmp_path / "a.npz", ["word"])) == ["word"]


ONE = npy(np.zeros(4))
REFUSED = {
    "would become": [("a.npy", npy(np.zeros(1 << 24)))],
    "a name stands there twice": [("a.npy", ONE), ("a.npy", ONE)],
    r"a says float64 \[9999999\]": [("a.npy", ONE.replace(b"(4,)", b"(9999999,)"))],
    r"a says float64 \[-1\]": [("a.npy", ONE.replace(b"(4,)", b"(-1,)"))],
    "a holds object": [("a.npy", npy(np.array([{}], object), allow_pickle=True))],
    "magic string": [("a.npy", b"no array")],
    "has no 'a'": [("b.npy", ONE)],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(tmp_path, words):
    path = archive(tmp_path / "a.npz", *REFUSED[words])
    with pytest.raises(ValueError, match=words):
        npz_file.read(path, ["a"])
