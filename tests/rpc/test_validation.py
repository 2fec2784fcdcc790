"""A ValidationError of the service is the client's, by field or as a list, with its codes."""

import copy
import json
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import translation

from pgbackend.rpc.client import Client
from pgbackend.rpc.protocol import errors
from pgbackend.rpc.protocol.answers import Answer, Outcome, open_answer, seal_answer
from pgbackend.rpc.protocol.invalid import Invalid, invalids
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.raising import raised
from pgbackend.rpc.server.failures import failure
from pgbackend.rpc.server.settings import service as settings_of
from tests.rpc.site import models as site
from tests.rpc.waiter.models import ClientModel, Dish

KINDS = list(site.wrongs())


def leaves(error: Any) -> Any:
    """Return what *error* says: each text with its code and its params."""
    if hasattr(error, "error_dict"):
        return {name: list(map(leaf, below)) for name, below in error.error_dict.items()}
    return list(map(leaf, error.error_list))


def leaf(error: Any) -> tuple[Any, ...]:
    text = str(error) if isinstance(error, Invalid) else error.messages[0]
    return str(error.message), error.code, error.params, text


def sent(error: ValidationError) -> errors.RemoteError:
    """Return *error* after its way in an answer."""
    keys = Keys("k1", {"k1": "k" * 32})
    found = Outcome(error=failure(error, settings_of()))
    text = seal_answer(Answer(id="0" * 32, time=0, outcomes=(found,)), keys, "k1")
    arrived = open_answer(text, keys).outcomes[0].error
    assert arrived is not None
    return arrived


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_method(service: str, kind: str) -> None:
    """What a method raises arrives as it is: equal, with its texts, codes and params."""
    with pytest.raises(ValidationError) as caught:
        Dish.objects.call("judge", kind)
    ours, theirs = caught.value, site.wrongs()[kind]
    assert ours == theirs
    assert (leaves(ours), str(ours)) == (leaves(theirs), str(theirs))
    for name in ("message", "code", "params", "error_dict"):
        assert hasattr(ours, name) == hasattr(theirs, name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_django(plain: Client, kind: str) -> None:
    """The plain client's error has the same by the same names."""
    with pytest.raises(errors.ValidationError) as caught:
        plain.model("rpc_site.Dish").call("judge", kind).result()
    theirs = site.wrongs()[kind]
    assert leaves(caught.value) == leaves(theirs)
    assert [str(each) for each in caught.value.error_list] == theirs.messages


def test_of_a_model(service: str) -> None:
    """What full_clean finds arrives with Django's codes and params, but for models."""
    site.Dish.objects.create(name="soup")
    for name, price in (("x" * 60, -1), ("soup", 1), ("nothing", Decimal("1e9"))):
        with pytest.raises(ValidationError) as caught:
            Dish.objects.create(name=name, price=price)
        with pytest.raises(ValidationError) as clean:
            site.Dish(name=name, price=Decimal(price)).full_clean()
        ours, theirs = caught.value, clean.value
        assert ours.message_dict == theirs.message_dict
        for field, found in theirs.error_dict.items():
            assert [each.code for each in ours.error_dict[field]] == [each.code for each in found]
            for mine, other in zip(ours.error_dict[field], found, strict=True):
                kept = {
                    name: value
                    for name, value in (other.params or {}).items()
                    if name not in ("model", "model_class")
                }
                assert (mine.params or {}) == kept


def test_of_rows_that_are_not_loaded(service: str) -> None:
    """An update says codes and params as well, and so does a foreign key to no row."""
    site.Dish.objects.create(name="soup")
    with pytest.raises(ValidationError) as caught:
        Dish.objects.update(price=-1)
    (error,) = caught.value.error_dict["price"]
    assert (error.code, error.params["limit_value"]) == ("min_value", 0)
    with pytest.raises(ValidationError) as caught:
        Dish.objects.update(name=None)
    assert [each.code for each in caught.value.error_dict["name"]] == ["null"]
    with pytest.raises(ValidationError) as caught:
        ClientModel.objects.create(parent_id=99)
    (error,) = caught.value.error_dict["parent"]
    assert (error.code, error.params["value"]) == ("invalid", 99)
    assert error.messages == ["server model instance with id 99 does not exist."]


def test_what_cannot_be_sent() -> None:
    """An instance, a class, a long or a deep value stay in the service; the texts are whole."""
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    dish = site.Dish(name="50 % soup", recipe="secret")
    params = {
        "dish": dish,
        "kind": site.Dish,
        "long": "x" * 3000,
        "deep": deep,
        "nan": float("nan"),
    }
    kept = sent(ValidationError("%(dish)s: 10 %%", "x", {**params, "n": 1}))
    error = raised(kept, Dish)
    assert isinstance(error, ValidationError)
    assert (error.messages, error.code) == (["50 % soup: 10 %"], "x")
    assert error.params.keys() == {"n", "nan"}
    error = raised(sent(ValidationError("100 % of %(a)s", "y", {})), Dish)
    assert leaves(error) == [("100 % of %(a)s", "y", None, "100 % of %(a)s")]
    error = raised(sent(ValidationError("of %(dish)s", "z", {"dish": dish})), Dish)
    assert leaves(error) == [("of 50 % soup", "z", None, "of 50 % soup")]
    assert "secret" not in json.dumps(kept.details, default=str)


def test_texts_of_a_language() -> None:
    """Texts are in the language of the service's process."""
    with translation.override("de"):
        error = raised(sent(site.wrongs()["translated"]), Dish)
    assert error.messages == ["Bitte eine ganze Zahl eingeben."]  # type: ignore[attr-defined]  # Django's


def test_what_is_no_text(caplog: pytest.LogCaptureFixture) -> None:
    """A text that does not take its params, and one that UTF-8 has not, are answered."""
    assert sent(ValidationError("100 % of it", params={"a": 1})).code == "ServerError"
    assert "a ValidationError has no text" in caplog.text
    assert sent(ValidationError("\ud800 %(a)s", "\ud800", {"a": "\ud800"})).details == {
        "messages": ["? ?"],
        "errors": ("? ?", "?", None),
    }


def test_a_service_that_knows_no_codes() -> None:
    """Of texts alone the error has its texts, as it had before there were codes."""
    for messages, theirs in (
        (["Closed."], ValidationError("Closed.")),
        (["a", "100 %"], ValidationError(["a", "100 %"])),
        ({"name": ["a"]}, ValidationError({"name": ["a"]})),
    ):
        error = errors.ValidationError("no", {"messages": messages})
        assert raised(error, Dish) == theirs
        assert leaves(error) == leaves(theirs)
    assert raised(errors.ValidationError("no"), Dish) == ValidationError("no")
    assert leaves(errors.ValidationError("no")) == leaves(ValidationError("no"))


@pytest.mark.parametrize(
    "found",
    [
        *(1, ("x",), ("x", "y"), ("x", 1.5, None), (1, None, None), ("x", None, [1])),
        *(("%(a)s", None, {"b": 1}), ("%d", None, {"b": 1}), ("%", None, {"b": 1}), [1]),
        *({"name": 1}, {"name": [1]}, {"name": ("x", None, None)}, [[("x", None, None)]]),
    ],
)
def test_details_of_another_form(found: Any) -> None:
    """What is no list of errors is not looked at: the texts are there."""
    error = errors.ValidationError("no", {"messages": ["a"], "errors": copy.copy(found)})
    assert invalids(error.details) == Invalid("a")
    assert raised(error, Dish) == ValidationError("a")
    assert invalids({"errors": found, "messages": found}) is None
