"""What goes to MLflow is what MLflow takes, judged by MLflow itself."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UsageError
from infra.tracking.rules import MAX_VALUE, cut, flatten, grid_files, safe_key, tracking_uri


@settings(max_examples=300)
@given(st.text(min_size=1, max_size=300))
def test_every_name_becomes_a_good_one(name: str) -> None:
    """MLflow's own check passes any name we make, and such a name is not changed again."""
    from mlflow.utils.validation import _validate_metric_name

    try:
        safe = safe_key(name)
    except ValueError:
        assert not set(name) - set("./")
        return
    _validate_metric_name(safe)
    assert safe_key(safe) == safe


@pytest.mark.parametrize(
    "name", ["train/loss", "model.width", "test/celeba-test/psnr", "t 0.1:0.2"]
)
def test_a_good_name_stays(name: str) -> None:
    """Our own conventions need no repair."""
    assert safe_key(name) == name


def test_long_names_stay_apart() -> None:
    """Two names that differ only in what had to be cut remain two."""
    assert safe_key("x" * 400 + "a") != safe_key("x" * 400 + "b")


def test_nested_settings_are_flat_texts() -> None:
    """A configuration becomes dotted names with the values as JSON writes them."""
    config = {"model": {"depth": (2, 2, 8), "kind": "hdit"}, "lr": 1e-4, "ema": None, "extra": {}}

    assert flatten(config) == {
        "model.depth": "[2, 2, 8]",
        "model.kind": "hdit",
        "lr": "0.0001",
        "ema": "null",
        "extra": "{}",
    }


@given(st.integers(0, 3 * MAX_VALUE))
def test_a_cut_text_says_so(length: int) -> None:
    """No text is longer than the limit, a shortened one tells its length, and once is enough."""
    text = cut("x" * length)

    assert len(text) <= MAX_VALUE
    assert (f"(cut from {length} characters)" in text) == (length > MAX_VALUE)
    assert cut(text) == text


@pytest.mark.parametrize(
    "uri", ["htps://host:5000", "mlflow.db", "./mlruns", "file:///tmp/mlruns", "sqlite:mlflow.db"]
)
def test_an_impossible_store_is_refused(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """A store that MLflow cannot have is the user's mistake, told at once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    with pytest.raises(UsageError, match="not a tracking store"):
        tracking_uri()


def test_a_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about a URI holds no credentials."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htps://me:secret@host")

    with pytest.raises(UsageError) as error:
        tracking_uri()

    assert "secret" not in str(error.value)
    assert "htps://host" in str(error.value)


def test_the_default_store_is_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """Without a variable it is mlflow.db here, under its absolute path."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(str(tmp_path))

    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_picture_has_a_legible_copy() -> None:
    """The full picture is exact, the copy at most 1536 wide, the names depend on nothing else."""
    picture = Image.effect_noise((2048, 512), 40).convert("RGB")
    files = dict(grid_files("val/re%stored", picture, 50, 12_000))
    (full, small) = files

    assert list(dict(grid_files("val/re%stored", picture, 50, 12_000))) == [full, small]
    assert full.startswith("images/val~re_stored+step+50+timestamp+12000+")
    assert Image.open(io.BytesIO(files[full])).tobytes() == picture.tobytes()
    assert Image.open(io.BytesIO(files[small])).size == (1536, 384)
    assert not set("%#") & set(json.dumps(list(files)))
